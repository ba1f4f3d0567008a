"""Rows on disk: read one at a time, checked, filtered and split."""
