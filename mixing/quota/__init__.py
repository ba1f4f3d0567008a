"""How many groups of each source a step has."""
