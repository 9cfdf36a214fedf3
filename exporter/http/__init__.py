"""Which client gets which answer."""
