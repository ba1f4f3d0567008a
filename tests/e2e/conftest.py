"""A private Ray cluster for a test module, freed at its end, and a scan of listening ports."""

import contextlib
import importlib.util
import logging
import os
import sys
from pathlib import Path

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


@pytest.fixture(scope="session")
def scan_ports():
    """Return what every listening port of processes answers without a token: `port_scan.scan`."""
    path = Path(__file__).with_name("port_scan.py")
    spec = importlib.util.spec_from_file_location("port_scan", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["port_scan"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda processes: module.scan([p.pid for p in processes])
