"""A private Ray cluster for a test module, freed at its end, and a scan of listening ports."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from tests.e2e.private_ray import private_ray

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="module")
def ray_cluster():
    with private_ray(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def scan_ports():
    """Return what every listening port of processes answers without a token: `port_scan.scan`."""
    path = Path(__file__).with_name("port_scan.py")
    spec = importlib.util.spec_from_file_location("port_scan", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["port_scan"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda processes, **how: module.scan([p.pid for p in processes], **how)
