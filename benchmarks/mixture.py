"""How fast the mix is planned, how true its shares are, and how little memory it takes.

    python benchmarks/mixture.py [--json FILE] [--groups 200000]

All on one core, over sources of items that are made in memory, so that only planning is measured:
- groups planned a second, for each unit, for a sampled mix, and along a ramp;
- the realised share against the target after 200 steps, the worst source of five; loss tokens are
  lengths drawn at random, one source ten times longer than another, reported two steps late;
- memory of 100,000 requests in flight, and of a source of 1,000,000 items with its place in it.
"""

import argparse
import json
import platform
import random
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stack import show_figures
from configs.schema import RunConfig
from mixing.mixer import Mixer
from mixing.quota.tokens import Trained
from rollouts.types import GroupRequest, Message, Task

WEIGHTS = {"code": 2.0, "maths": 1.0, "search": 1.0, "slow": 0.5, "few": 0.25}
SIZES = {"code": 100_000, "maths": 100_000, "search": 100_000, "slow": 10_000, "few": 30}
LENGTHS = {"code": 400, "maths": 900, "search": 200, "slow": 1500, "few": 150}
GROUP_SIZES = {"code": 8, "maths": 16, "search": 8, "slow": 4, "few": 32}
MILLION = 1_000_000


class MadeSource:
    """Items made when asked for, as a file's rows would be."""

    fingerprint = "made"

    def __init__(self, name: str, size: int):
        self.name, self.size = name, size

    def task(self, item: int) -> Task:
        """Return item `item`."""
        return Task(
            task_id=f"{self.name}/train/{item}",
            source=self.name,
            prompt=(Message(role="user", content=f"What is {item} + {item}?"),),
            answer=str(2 * item),
            metadata={},
        )

    def offline_rates(self) -> None:
        """Return nothing: no pass rates were measured beforehand."""

    def held_out(self) -> tuple[Task, ...]:
        """Return no evaluation items."""
        return ()


def recipe(*, groups: int = 64, late: int = 0, stages: object = (), **mix: object) -> RunConfig:
    """Return a recipe of the five sources."""
    sources = [
        {
            "name": name,
            "data": {"procedural": "reasoning_gym/lcm", "size": SIZES[name]},
            "rewards": [{"name": "r", "use": "exact"}],
            "weight": weight,
            "group_size": GROUP_SIZES[name],
        }
        for name, weight in WEIGHTS.items()
    ]
    return RunConfig.model_validate(
        {
            "name": "mixture",
            "num_steps": 10**6,
            "model": {"path": "none"},
            "batch": {"groups_per_step": groups, "max_staleness": late},
            "sources": sources,
            "stages": stages,
            "mix": mix,
        }
    )


def open_mixer(cfg: RunConfig, sizes: dict[str, int] | None = None) -> Mixer:
    """Return a mixer over made sources."""
    sizes = sizes or SIZES
    return Mixer(cfg, {s.name: MadeSource(s.name, sizes[s.name]) for s in cfg.sources})


def planned_per_second(cfg: RunConfig, groups: int) -> float:
    """Return groups planned a second, everything that a group needs included."""
    mixer, lengths = open_mixer(cfg), random.Random(1)
    steps = groups // cfg.batch.groups_per_step
    seconds = 0.0
    for step in range(1, steps + 1):
        began = time.perf_counter()
        requests = mixer.plan_step(step)
        seconds += time.perf_counter() - began
        mixer.observe_trained(step, trained(requests, lengths))
        mixer.casting.close(step)
    return steps * cfg.batch.groups_per_step / seconds


def trained(requests: tuple[GroupRequest, ...], lengths: random.Random) -> dict[str, Trained]:
    """Return what training on these would report, with random lengths."""
    found: dict[str, Trained] = {}
    for r in requests:
        before = found.get(r.task.source, Trained(0, 0, 0))
        mean = LENGTHS[r.task.source] * r.group_size
        found[r.task.source] = Trained(
            before.groups + 1,
            before.samples + r.group_size,
            before.loss_tokens + max(1, int(mean * lengths.lognormvariate(0, 0.4))),
        )
    return found


def share_error(unit: str, steps: int, late: int = 2) -> float:
    """Return the largest |realised - target| share of a source after some steps, in `unit`."""
    cfg = recipe(unit=unit, late=late)
    mixer, lengths = open_mixer(cfg), random.Random(2)
    place = ("groups", "samples", "loss_tokens").index(unit)
    got = dict.fromkeys(WEIGHTS, 0)
    due = dict.fromkeys(WEIGHTS, 0.0)
    for step in range(1, steps + 1):
        found = trained(mixer.plan_step(step), lengths)
        mixer.observe_trained(step, found)
        mixer.casting.close(step)
        units = sum(t[place] for t in found.values())
        for name, share in mixer.target_shares(step).items():
            got[name] += found[name][place] if name in found else 0
            due[name] += share * units
    total = sum(got.values())
    return max(abs(got[name] - due[name]) / total for name in WEIGHTS)


def bytes_held(make: Callable[[], object]) -> int:
    """Return the bytes that `make` leaves allocated while its result is alive."""
    tracemalloc.start()
    try:
        made = make()
        held, _ = tracemalloc.get_traced_memory()
        del made
        return held
    finally:
        tracemalloc.stop()


def in_flight_bytes(groups: int) -> int:
    """Return the memory of requests in flight, their prompts and ids included."""
    mixer = open_mixer(recipe(groups=1000))
    return bytes_held(lambda: [mixer.plan_step(step) for step in range(1, groups // 1000 + 1)])


def million_item_figures() -> dict[str, float]:
    """Return what a source of a million items costs the driver."""
    sizes = {**SIZES, "code": MILLION}
    cfg = recipe()

    def go() -> Mixer:
        mixer = open_mixer(cfg, sizes)
        for step in range(1, 1001):
            mixer.plan_step(step)
            mixer.casting.close(step)
        return mixer

    held = bytes_held(go)
    return {
        "million_items_mb": round(held / 1e6, 2),
        "million_items_state_kb": round(len(json.dumps(go().state_dict())) / 1e3, 1),
    }


def measure(groups: int) -> dict[str, float | str]:
    """Return all figures."""
    ramp = [{"until": {"step": 10**6}, "ramp": "linear", "weights": {"code": 0.1, "slow": 3}}]
    figures: dict[str, float | str] = {
        "groups_per_s": planned_per_second(recipe(), groups),
        "groups_per_s_samples": planned_per_second(recipe(unit="samples"), groups),
        "groups_per_s_loss_tokens": planned_per_second(recipe(unit="loss_tokens"), groups),
        "groups_per_s_sampled": planned_per_second(recipe(strategy="sampled"), groups),
        "groups_per_s_ramp": planned_per_second(recipe(stages=ramp), groups),
    }
    figures = {name: round(float(value)) for name, value in figures.items()}
    figures["times_goal"] = round(min(float(v) for v in figures.values()) / 20_000, 2)
    for unit in ("groups", "samples", "loss_tokens"):
        figures[f"share_error_{unit}_200_steps"] = round(share_error(unit, 200), 6)
    figures["in_flight_100k_mb"] = round(in_flight_bytes(100_000) / 1e6, 1)
    figures |= million_item_figures()
    figures["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)
    figures["python"] = platform.python_version()
    figures["machine"] = platform.machine()
    return figures


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="File to write the figures to.")
    parser.add_argument("--groups", type=int, default=200_000, help="Groups planned per case.")
    arguments = parser.parse_args()
    figures = measure(arguments.groups)
    show_figures(figures, arguments.json)


if __name__ == "__main__":
    main()
