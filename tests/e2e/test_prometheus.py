"""What Prometheus scrapes from a real Ray node is what a run logged."""

import re
import time
import urllib.request
from collections.abc import Iterator

import pytest
import ray

from orchestrator.sinks.to_prometheus import PrometheusSink
from rewards.monitors.alarms import Alarm
from tests.e2e.private_ray import private_ray

Series = tuple[str, frozenset[tuple[str, str]]]
"""Name and labels."""


@pytest.fixture
def address() -> Iterator[str]:
    with private_ray(num_cpus=1, _system_config={"metrics_report_interval_ms": 500}):
        (node,) = ray.nodes()
        yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def series(name: str, **labels: str) -> Series:
    return f"ray_braid_{name}", frozenset({"run": "run-1", **labels}.items())


def scraped(address: str) -> dict[Series, float]:
    """Return every series of braid's that is there now."""
    try:
        text = urllib.request.urlopen(address, timeout=10).read().decode()
    except OSError:
        return {}  # the agent comes up a moment after the node
    found: dict[Series, float] = {}
    for line in text.splitlines():
        if match := re.match(r"(ray_braid_\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            ours = {k: v for k, v in labels.items() if k.islower() and not k.startswith("otel")}
            found[match[1], frozenset(ours.items())] = float(match[3])
    return found


def test_a_scrape_has_gauges_counters_and_the_histogram(address: str):
    sink = PrometheusSink("run-1")  # made before anything is recorded
    for step in (1, 2):
        metrics = {
            "step": step,
            "time/step": 1.5,
            "completion_tokens": 100,
            "source/sums/trained/reward/mean": step / 4,
            "source/sums/groups": 3,
            "train/loss": float("nan"),
        }
        sink.log(metrics, step)
    sink.log({"eval/sums/pass_rate": 0.75}, 2)
    raised = {"monitor": "length", "action": "warn", "text": "", "figures": {}}
    sink.alarm(Alarm(step=2, source="sums", event="raised", **raised))
    sink.alarm(Alarm(step=2, source="sums", event="cleared", **raised))
    expected = {
        series("source_reward_mean", source="sums", pool="trained"): 0.5,
        series("held_out_pass_rate", source="sums"): 0.75,
        series("steps_total"): 2,
        series("completion_tokens_total"): 200,
        series("source_groups_total", source="sums"): 6,
        series("alarms_total", source="sums", monitor="length"): 1,
        series("step_seconds_count"): 2,
        series("step_seconds_sum"): 3,
        series("step_seconds_bucket", le="2.0"): 2,
    }
    deadline, found = time.monotonic() + 60, scraped(address)
    while not expected.items() <= found.items() and time.monotonic() < deadline:
        time.sleep(0.5)
        found = scraped(address)
    assert {s: found.get(s) for s in expected} == expected, found
    assert not any(name == "ray_braid_train_loss" for name, _ in found)
