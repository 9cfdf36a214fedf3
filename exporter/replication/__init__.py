"""What is true: facts and what follows from them. No threads, no AWS."""
