"""Math answers graded per second, through the killable processes that a run grades with.

    python benchmarks/rewards_math.py [--answers 3000] [--workers 2] [--record]

Three mixes: numbers that are written out, expressions for math-verify, and three numbers to one
expression, as most sets of school mathematics are. `direct` is the same grader called in this
process, and `math_verify` is that library alone on the same answers with its timeouts off: what
is lost to processes, and what reading numbers ourselves gains. Prints one JSON object, and records
it as `rewards.py` does.
"""

import argparse
import asyncio
import importlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

if __name__ == "__main__":  # rewards.py beside this file has the name of the package it measures
    sys.path[0] = str(Path(__file__).parents[1])

from pydantic import JsonValue

from benchmarks.rewards import record
from configs.load import parse_grader
from configs.schema import RewardGroupConfig
from rewards.registry import load_prepare
from rewards.standalone import Grading
from rewards.subject import Subject

GRADER = parse_grader('{"type": "math"}', "math")
Pair = tuple[str, str]
"""The truth, and the answer."""


def numbers(rng: random.Random) -> Pair:
    """Return a number and one of several ways of writing it, or a wrong one."""
    a, b = rng.randint(-5000, 5000), rng.randint(2, 9)
    truth = rng.choice([str(a), f"\\frac{{{a}}}{{{b}}}", f"{a}\\%", f"{a / 4}"])
    near = rng.choice([truth, truth, f"{truth}\\text{{ cm}}", f"x = {truth}", str(a + 1)])
    return truth, near


def expressions(rng: random.Random) -> Pair:
    """Return an expression and one that is equal, or not."""
    a, b = rng.randint(2, 30), rng.randint(2, 30)
    return rng.choice(
        [
            (f"(x+{a})^2", f"x^2+{2 * a}x+{a * a}"),
            (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"),
            (f"({a},{a + b})", f"{a} < x < {a + b}"),
            (f"\\{{{a},{b + 31}\\}}", f"{b + 31}, {a}"),
            (f"\\frac{{\\pi}}{{{a}}}", f"\\frac{{\\pi}}{{{b}}}"),
        ]
    )


def mix(rng: random.Random) -> Pair:
    """Return a number three times out of four."""
    return expressions(rng) if rng.random() < 0.25 else numbers(rng)


def subject(pair: Pair) -> Subject:
    """Return an answer in a box after some reasoning."""
    text = "Let us see. " * 40 + f"So the answer is $\\boxed{{{pair[1]}}}$."
    return Subject.of_text({"answer": pair[0]}, text)


async def graded(pairs: Sequence[Pair], workers: int) -> float:
    """Return answers per second through worker processes."""
    cfg = RewardGroupConfig(workers=workers, timeout_s=60, retries=0)
    async with Grading(GRADER, cfg) as grading:
        subjects = [subject(pair) for pair in pairs]
        await asyncio.gather(*(grading.score(s) for s in subjects[: 10 * workers]))
        started = time.monotonic()
        await asyncio.gather(*(grading.score(s) for s in subjects))
        return len(pairs) / (time.monotonic() - started)


def direct(pairs: Sequence[Pair]) -> float:
    """Return answers per second of the grader alone."""
    grade = load_prepare("math")(GRADER, "math")
    return _rate(pairs, lambda pair: grade(subject(pair)))


def math_verify(pairs: Sequence[Pair]) -> float:
    """Return answers per second of the library alone."""
    library = cast(Any, importlib.import_module("math_verify"))

    def once(pair: Pair) -> object:
        truth, answer = (library.parse(f"$\\boxed{{{t}}}$", parsing_timeout=None) for t in pair)
        return library.verify(truth, answer, timeout_seconds=None)

    return _rate(pairs, once)


def _rate(pairs: Sequence[Pair], once: Callable[[Pair], object]) -> float:
    once(("\\sqrt{2}", "1"))
    started = time.monotonic()
    for pair in pairs:
        once(pair)
    return len(pairs) / (time.monotonic() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=3000, help="of numbers; others fewer")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write baseline and page")
    args = parser.parse_args()
    found: dict[str, JsonValue] = {"cpus": os.cpu_count(), "machine": platform.processor()}
    makers = {"numbers": (numbers, 1), "expressions": (expressions, 20), "mix": (mix, 5)}
    for name, (make, fewer) in makers.items():
        rng = random.Random(0)
        pairs = [make(rng) for _ in range(max(20, args.answers // fewer))]
        found[name] = {
            "answers": len(pairs),
            "graded_per_s": round(asyncio.run(graded(pairs, args.workers)), 1),
            "direct_per_s": round(direct(pairs), 1),
            "math_verify_per_s": round(math_verify(pairs[:300]), 1),
        }
    print(json.dumps(found, indent=2))
    if args.record:
        record("math", found)


if __name__ == "__main__":
    main()
