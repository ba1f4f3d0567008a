"""What `braid` does besides training, a command a file."""
