"""Which items a baseline samples, and what becomes of the groups' summaries."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.load import load_recipe
from orchestrator.commands.baseline import _answers, _item
from orchestrator.sampling import item_requests
from rollouts.types import (
    Boundary,
    Message,
    RolloutError,
    RolloutStatus,
    Task,
)
from tests.made_groups import made_group, made_rollout

ROOT = Path(__file__).parents[3]
CFG = load_recipe(ROOT / "configs" / "recipes" / "quickstart.yaml")


@dataclass
class Numbers:
    """Items that are their own answers."""

    size: int
    fingerprint: str = "f"

    def task(self, item: int) -> Task:
        return Task(
            task_id=f"sums/train/{item}",
            source="sums",
            prompt=(Message(role="user", content=str(item)),),
            answer=str(item),
            metadata={},
        )

    def held_out(self) -> tuple[Task, ...]:
        raise AssertionError("a baseline samples training items")


def drawn(size: int, items: int, seed: int = 1) -> list[int]:
    cfg = CFG.model_copy(update={"seed": seed})
    source, data = cfg.sources[0], Numbers(size)
    requests = item_requests(cfg, source, data, items=items, samples=5, purpose="baseline")
    assert len({r.group_id for r in requests}) == len(requests)
    assert all(r.step == -1 and r.group_size == 5 for r in requests)
    assert all(r.sampling.max_tokens == 18 for r in requests)
    return [int(r.task.task_id.rpartition("/")[2]) for r in requests]


def test_items_are_drawn_from_the_whole_source_by_the_seed():
    chosen = drawn(10_000, 64)
    assert len(set(chosen)) == 64 and min(chosen) < 1000 and max(chosen) > 9000
    assert chosen == drawn(10_000, 64) != drawn(10_000, 64, seed=2)


def test_a_small_source_is_sampled_whole():
    assert drawn(7, 64) == list(range(7))


@pytest.mark.parametrize(("size", "seen"), [(3, 3), (500, 500), (10**6, 500)])
def test_answers_are_of_items_spread_over_the_source(size: int, seen: int):
    answers = [int(a or -1) for a in _answers(Numbers(size)) if a is not None]
    assert len(set(answers)) == seen
    assert answers == sorted(answers) and answers[-1] >= size * 0.99 - 1


def test_a_summary_becomes_numbers():
    wrong = RolloutError(boundary=Boundary.REWARD, kind="ValueError", message="no number")
    rollouts = (
        made_rollout(1.0, 4),
        made_rollout(0.0, 18, status=RolloutStatus.TRUNCATED),
        made_rollout(None, 7, error=wrong),
    )
    summary = made_group(rollouts, group_id="sums/train/3#baseline", source="sums", step=-1)
    item = _item(summary)
    assert (item.rewards, item.truncated, item.invalid) == ((1.0, 0.0), 1, 1)
    assert (item.tokens, item.error) == ((4, 18, 7), "reward: no number")
