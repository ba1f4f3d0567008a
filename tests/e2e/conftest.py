"""A private Ray cluster for a test module, freed at its end."""

import contextlib
import logging
import os

import pytest
import ray

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="module")
def ray_cluster():
    for attempt in range(3):
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            break
        except (RuntimeError, TimeoutError, ConnectionError):
            with contextlib.suppress(RuntimeError):
                ray.shutdown()
            if attempt == 2:
                raise
    yield
    ray.shutdown()
