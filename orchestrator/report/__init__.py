"""What a person sees of a run: a page of its own, live, or beside another run."""
