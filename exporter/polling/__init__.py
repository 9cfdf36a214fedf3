"""When AWS is asked, and what an answer changes."""
