"""Settings of every test: hypothesis has no deadline (a timing assertion by another name)."""

from hypothesis import settings

settings.register_profile("braid", deadline=None)
settings.load_profile("braid")
