"""Runs in the jail: standard library alone, imported by path, hence the relative imports."""
