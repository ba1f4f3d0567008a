import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import five_sources
from benchmarks.five_sources import RECIPE, Variant
from benchmarks.stack import PAGE, overrides, section, write_section
from benchmarks.worlds import SlowTurn, half_telling
from configs.load import load_recipe
from configs.validate import validate_run
from mixing.ledger.events import Attempt, Dispatched, DispatchedGroup, Trained, TrainedGroup, to_row
from mixing.quota.allocator import Allocator
from rollouts.types import Completion, Message, Rollout, RolloutStatus, Task, Turn


def task(item: int) -> Task:
    return Task(
        task_id=f"filtered/train/{item}",
        source="filtered",
        prompt=(Message(role="user", content="?"),),
        answer="['7']",
        metadata={},
    )


def rollout(index: int, text: str) -> Rollout:
    completion = Completion(
        token_ids=np.zeros(1, np.int32),
        logprobs=np.zeros(1, np.float32),
        finish_reason="stop",
        versions=(),
    )
    turn = Turn(prompt_ids=np.zeros(1, np.int32), completion=completion, text=text)
    return Rollout(index=index, turns=(turn,), status=RolloutStatus.COMPLETED, reward_parts={})


def ledger(path: Path, *events) -> Path:
    path.write_bytes(b"".join(map(to_row, events)))
    return path


def trained(step: int, *groups: str) -> Trained:
    made = tuple(TrainedGroup(g, 4, 12) for g in groups)
    return Trained(time=0, step=step, version=step, groups=made)


@pytest.mark.parametrize("variant", five_sources.variants(200), ids=lambda v: v.name)
def test_every_variant_of_the_recipe_runs(variant):
    fields = overrides({"num_steps": variant.steps, **variant.fields})
    cfg = load_recipe(RECIPE, fields[1::2])
    assert not validate_run(cfg)
    assert len(cfg.sources) == 5


def test_shares_of_the_recipe_come_true_within_the_bound():
    cfg = load_recipe(RECIPE)
    allocator = Allocator(cfg, {s.name: 30 if s.name == "few" else 1000 for s in cfg.sources})
    sizes, samples = allocator.group_sizes(), dict.fromkeys(allocator.group_sizes(), 0)
    for step in range(1, cfg.num_steps + 1):
        counts = allocator.allocate(step, dict.fromkeys(samples, 0)).counts
        samples = {n: s + counts.get(n, 0) * sizes[n] for n, s in samples.items()}
    total, weights = sum(samples.values()), sum(s.weight for s in cfg.sources)
    for source in cfg.sources:
        off = samples[source.name] / total - source.weight / weights
        assert abs(off) < five_sources.SHARE_BOUND


@pytest.mark.parametrize("item", range(40))
def test_half_telling_grades_an_item_always_or_never(item):
    marks = [half_telling(rollout(k, "['7']" if k % 2 else "no"), task(item)) for k in range(4)]
    assert set(marks) == {0.0} or len(set(marks)) == 4


def test_half_telling_tells_of_half_the_items():
    telling = sum(half_telling(rollout(1, "['7']"), task(item)) > 0 for item in range(2000))
    assert 900 < telling < 1100


def test_the_slow_world_waits_and_ends_after_one_reply(monkeypatch):
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    said = asyncio.run(SlowTurn(seconds=4.0).step(Message(role="assistant", content="1")))
    assert said.done and slept == [4.0]


def test_kills_are_random_and_fixed():
    kills = five_sources.kill_steps(200)
    assert kills == five_sources.kill_steps(200)
    assert len(set(kills)) == five_sources.KILLS and list(kills) == sorted(kills)
    assert min(kills) > 1 and max(kills) < 200


def test_the_sequence_of_tasks_leaves_out_what_a_resume_undid(tmp_path):
    begun = Attempt(time=0, attempt=1, step=0, offset=0)
    offset = len(to_row(begun)) + len(to_row(trained(1, "a#e0a1")))
    path = ledger(
        tmp_path / "ledger.jsonl",
        begun,
        trained(1, "a#e0a1"),
        Dispatched(time=0, step=2, version=1, groups=(DispatchedGroup("b#e0a1", "s", 4),)),
        trained(2, "b#e0a1"),
        Attempt(time=0, attempt=2, step=1, offset=offset),
        trained(2, "c#e0a1", "d#e0a1"),
    )
    assert five_sources.trained_tasks(path) == [(1, ("a#e0a1",)), (2, ("c#e0a1", "d#e0a1"))]
    assert five_sources.attempts(tmp_path) == 2


def test_attempts_before_the_first_are_none(tmp_path):
    assert five_sources.attempts(tmp_path / "none") == 0
    assert not five_sources.ended(Variant("none", 3, {}), tmp_path)


def test_a_difference_is_named():
    one = [(1, ("a", "b")), (2, ("c",))]
    assert five_sources.first_difference(one, list(one)) is None
    assert "b / x" in (five_sources.first_difference(one, [(1, ("a", "x")), (2, ("c",))]) or "")
    assert five_sources.first_difference(one, one[:1]) == "2 steps / 1"
    assert "as many" not in (five_sources.first_difference(one, [(1, ("b", "a"))]) or "as many")


def account(share: float, target: float) -> dict:
    return {
        "target_share": target,
        "trained": {"groups": 10, "samples": 40, "share": {"samples": share}},
        "rejected": {"zero_variance": 9, "failed": 1},
        "survival": 0.5,
    }


def test_figures_are_of_the_unit_and_leave_out_sources_that_are_off():
    off = {**account(0.0, 0.0), "trained": {"groups": 0, "samples": 0, "share": {"samples": 0.0}}}
    report = {
        "unit": "samples",
        "sources": {"a": account(0.253, 0.25), "b": account(0.747, 0.75), "off": off},
    }
    figures = five_sources.source_figures(report)
    assert list(figures) == ["a", "b"]
    assert figures["a"]["rejected"] == {"zero_variance": 9, "failed": 1}
    assert five_sources.render({"whole": {"sources": figures}}).row_count == 2
    assert five_sources.share_error(figures) == pytest.approx(0.003)


def test_seconds_of_a_group_are_means_by_source():
    done = [
        {f"source/{name}/all/generate_s": s for name, s in (("slow", 4.0), ("a", x))} | {"step": 1}
        for x in (0.2, 0.6)
    ]
    assert five_sources.group_seconds(done) == pytest.approx({"slow": 4.0, "a": 0.4})


def test_everything_that_fails_is_named():
    good = {"balanced": True, "lost": 0, "trained_twice": 0, "worst_share_error": 0.004}
    assert five_sources.failures({"whole": good}, {}) == []
    bad = {"balanced": False, "lost": 1, "trained_twice": 2, "worst_share_error": 0.006}
    assert len(five_sources.failures({"whole": bad}, {"again": "step 3 / 3: x / y"})) == 5


def test_the_page_shows_the_recorded_figures():
    figures = json.loads(five_sources.BASELINE.read_text())
    assert section(PAGE.read_text(), "five sources") == five_sources.page_section(figures)


def test_a_section_of_a_page_is_replaced_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- x -->\n\nold\n\n<!-- end of x -->\nb\n<!-- y -->\n\n1\n\n<!-- end of y -->\n"
    )
    write_section("x", "new\nlines\n", page)
    assert section(page.read_text(), "x") == "new\nlines\n"
    assert section(page.read_text(), "y") == "1\n"
    assert page.read_text().startswith("a\n<!-- x -->\n\nnew\nlines\n\n<!-- end of x -->\nb\n")
    with pytest.raises(ValueError, match="no marks of z"):
        section(page.read_text(), "z")
