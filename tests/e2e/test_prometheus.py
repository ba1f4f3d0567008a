"""What Prometheus scrapes from a real Ray node is what a run logged."""

import re
import time
import urllib.request
from collections.abc import Iterator

import pytest
import ray

from orchestrator.sinks.to_prometheus import PrometheusSink
from rewards.monitors.alarms import Alarm


@pytest.fixture
def address() -> Iterator[str]:
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 500},
    )
    (node,) = ray.nodes()
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray.shutdown()


def scraped(address: str, until: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every series of braid's, once one of them is there."""
    deadline, text = time.monotonic() + 60, ""
    while until not in text:
        assert time.monotonic() < deadline, f"no {until} at {address}:\n{text[-2000:]}"
        time.sleep(0.5)
        try:
            text = urllib.request.urlopen(address, timeout=10).read().decode()
        except OSError:
            continue  # the agent comes up a moment after the node
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
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
    found = scraped(address, until="ray_braid_alarms_total{")

    def value(name: str, **labels: str) -> float:
        return found[f"ray_braid_{name}", frozenset({"run": "run-1", **labels}.items())]

    assert value("source_reward_mean", source="sums", pool="trained") == 0.5
    assert value("held_out_pass_rate", source="sums") == 0.75
    assert value("steps_total") == 2
    assert value("completion_tokens_total") == 200
    assert value("source_groups_total", source="sums") == 6
    assert value("alarms_total", source="sums", monitor="length") == 1
    assert value("step_seconds_count") == 2 and value("step_seconds_sum") == 3
    assert value("step_seconds_bucket", le="2.0") == 2
    assert not any(name == "ray_braid_train_loss" for name, _ in found)
