"""What a difficulty window costs the driver on a source of many items.

    python benchmarks/difficulty.py --items 1000000

Three moments of a run: every item live and unknown; half of them known; and all but a dozen
retired or parked, where a walk over all items would be slow. Prints one JSON object.
"""

import argparse
import json
import random
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from configs.difficulty import DifficultyConfig
from mixing.difficulty.live_pool import LivePool
from mixing.difficulty.window import Difficulty, Observation

T = TypeVar("T")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=64, help="groups of the source in a step")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    rates = rng.random(args.items)
    half = np.where(rng.random(args.items) < 0.5, rates, np.nan)
    few = np.where(rates < 0.5, 0.0, 1.0)
    few[rng.choice(args.items, 12, replace=False)] = 0.5
    before = _rss()
    figures: dict[str, object] = {"items": args.items, "groups_per_step": args.groups}
    moments = (("unknown", rates, None), ("half_known", rates, half), ("twelve_live", few, few))
    for name, true, offline in moments:
        figures[name] = _measure(args.items, args.groups, args.steps, true, offline)
    figures["rss_mib"] = round(_rss() - before)
    print(json.dumps(figures, indent=2))


def _measure(
    items: int,
    groups: int,
    steps: int,
    rates: np.ndarray[tuple[int], np.dtype[np.float64]],
    offline: np.ndarray[tuple[int], np.dtype[np.float64]] | None,
) -> dict[str, float]:
    cfg = DifficultyConfig(window=(0.2, 0.8))
    opened, pool = _timed(lambda: LivePool("s", Difficulty("s", cfg, items, offline), seed=1))
    dice = random.Random(1)
    planning, observing = 0.0, []
    pool.require(groups)
    for step in range(1, steps + 1):
        pool.begin(step)
        spent, drawn = _timed(lambda: _draw(pool, groups))
        planning += spent
        seen = [
            Observation(
                item=item,
                pass_rate=sum(dice.random() < rates[item] for _ in range(8)) / 8,
                rollouts=8,
            )
            for item in drawn
        ]
        observing.append(_timed(lambda s=step, o=seen: pool.observe(s, o))[0])
    saving, state = _timed(lambda: json.dumps(pool.state_dict()))
    return {
        "open_s": round(opened, 3),
        "groups_planned_per_s": round(groups * steps / planning),
        "observe_ms_per_step": round(1000 * float(np.mean(observing)), 2),
        "observe_ms_worst": round(1000 * max(observing), 2),
        "save_ms": round(1000 * saving, 1),
        "state_kib": round(len(state) / 1024),
        "live": pool.difficulty.snapshot().live,
    }


def _draw(pool: LivePool, groups: int) -> list[int]:
    drawn: set[int] = set()
    while len(drawn) < groups:
        taken = pool.take(drawn)
        assert taken is not None
        drawn.add(taken[0])
    return sorted(drawn)


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def _rss() -> float:
    """Most memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
