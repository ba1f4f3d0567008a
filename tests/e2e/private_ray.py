"""A Ray cluster of a test's own."""

import contextlib
import logging
from collections.abc import Iterator

import ray

ATTEMPTS = 3


@contextlib.contextmanager
def private_ray(**options: object) -> Iterator[None]:
    """Start one without a dashboard, and end it. On a busy machine a node may not come up in the
    time that Ray gives it, of which Ray tells by a bare Exception."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
            break
        except Exception:
            with contextlib.suppress(RuntimeError):
                ray.shutdown()
            if attempt == ATTEMPTS:
                raise
    try:
        yield
    finally:
        ray.shutdown()
