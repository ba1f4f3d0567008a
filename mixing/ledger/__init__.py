"""The account of every group."""
