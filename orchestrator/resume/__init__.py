"""Runs that go on, and batches that are trained on once more."""
