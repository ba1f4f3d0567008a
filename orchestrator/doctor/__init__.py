"""`braid doctor`: whether this machine is ready, what is missing, and what to do about it."""
