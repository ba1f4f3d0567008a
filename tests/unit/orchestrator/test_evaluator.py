"""Evaluation against fake fleets: what is asked, by which version, and what the figures are."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from actors.errors import RunError
from configs.evaluation import eval_settings
from configs.schema import RunConfig
from orchestrator.clock import PhaseClock
from orchestrator.evaluator import EvalResult, evaluate, measure
from rollouts.types import GeneratedGroup, GroupRequest, GroupSummary, Sampling, Task
from tests.unit.orchestrator.fakes import generated, graded, made_task


def config(**evaluation: object) -> RunConfig:
    own = evaluation.pop("own", {})
    assert isinstance(own, dict)
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 10,
            "model": {"path": "nowhere"},
            "sources": [
                {
                    "name": name,
                    "data": {"procedural": "reasoning_gym/chain_sum"},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "sampling": {"temperature": 0.8, "max_tokens": 64},
                    "eval": own.get(name, {}),
                }
                for name in ("a", "b")
            ],
            "batch": {"groups_per_step": 2},
            "eval": evaluation,
        }
    )


class FakeMixer:
    """Has ten held-out items a source."""

    def held_out(self, source: str) -> tuple[Task, ...]:
        return tuple(made_task(source, i, split="held_out") for i in range(10))


@dataclass
class FakeFleets:
    """Grades by a function of the request."""

    answer: Callable[[GroupRequest], GroupSummary]
    requests: list[GroupRequest] = field(default_factory=list)

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        self.requests.append(request)
        return generated(request)

    async def grade(self, group: GeneratedGroup) -> GroupSummary:
        assert isinstance(group.ref, GroupRequest)
        return self.answer(group.ref)


def run(
    cfg: RunConfig, fleets: FakeFleets, sources: Sequence[str] = ("a", "b")
) -> tuple[EvalResult, ...]:
    return asyncio.run(
        evaluate(
            cfg,
            sources=sources,
            step=3,
            mixer=FakeMixer(),  # type: ignore[arg-type]
            rollout=fleets,  # type: ignore[arg-type]
            reward=fleets,  # type: ignore[arg-type]
            clock=PhaseClock(),
        )
    )


def always(reward: float | None) -> FakeFleets:
    return FakeFleets(lambda r: graded(r, [reward] * r.group_size, version=3))


def test_each_source_is_asked_as_it_says():
    fleets = always(1.0)
    cfg = config(
        samples=2,
        n=8,
        own={"b": {"n": 3, "samples": 4, "temperature": 0.0, "max_tokens": 16, "pass_at": [4]}},
    )
    a, b = run(cfg, fleets)
    asked = {s: [r for r in fleets.requests if r.task.source == s] for s in ("a", "b")}
    assert [len(asked["a"]), len(asked["b"])] == [8, 3]
    assert [r.task.task_id for r in asked["b"]] == [f"b/held_out/{i}" for i in range(3)]
    assert {(r.group_size, r.sampling.temperature, r.sampling.max_tokens) for r in asked["a"]} == {
        (2, 0.8, 64)
    }
    assert {(r.group_size, r.sampling.temperature, r.sampling.max_tokens) for r in asked["b"]} == {
        (4, 0.0, 16)
    }
    assert {r.step for r in fleets.requests} == {-1}
    assert [a.items, a.samples, a.n, b.items, b.samples, b.n] == [8, 2, 16, 3, 4, 12]
    assert (list(a.pass_at), list(b.pass_at)) == ([1, 2], [4])


def test_only_the_sources_that_are_due():
    fleets = always(0.0)
    assert [r.source for r in run(config(), fleets, ["b"])] == ["b"]
    assert {r.task.source for r in fleets.requests} == {"b"}


@pytest.mark.parametrize("versions", [(2, 3), (3, 4), (2, 2)])
def test_another_version_ends_the_run(versions: tuple[int, int]):
    def answer(request: GroupRequest) -> GroupSummary:
        odd = request.group_id == "b/held_out/4#eval3"
        oldest, newest = versions if odd else (3, 3)
        return graded(request, [1.0], version=oldest, newest=newest)

    with pytest.raises(RunError, match=r"evaluation of version 3: b/held_out/4#eval3 was sampled"):
        run(config(), FakeFleets(answer))


def test_a_group_that_sampled_nothing_has_no_version_to_check():
    a, _ = run(config(), FakeFleets(lambda r: graded(r, [None], version=-1, tokens=0)))
    assert (a.n, a.invalid) == (0, 10)
    assert math.isnan(a.pass_rate) and math.isnan(a.reward_mean) and math.isnan(a.pass_at[1])


def test_figures_by_hand_with_invalid_rollouts():
    cfg = config(samples=4, own={"a": {"pass_threshold": 0.5}})
    rewards: list[list[float | None]] = [
        [1.0, 0.5, 0.0, 0.4],
        [0.0, 0.0, None, 0.0],
        [None, None, None, 1.0],
        [None, None, None, None],
    ]
    request = GroupRequest(
        group_id="a/held_out/0#eval3",
        task=FakeMixer().held_out("a")[0],
        group_size=4,
        sampling=Sampling(temperature=1.0, max_tokens=64),
        step=-1,
    )
    result = measure(
        "a",
        3,
        eval_settings(cfg, cfg.source("a")),
        [graded(request, own, version=3) for own in rewards],
    )
    assert (result.n, result.invalid, result.items) == (8, 8, 4)
    assert result.pass_rate == 3 / 8
    assert result.reward_mean == pytest.approx(2.9 / 8)
    deviations = [1.9 - 4 * 2.9 / 8, 0.0 - 3 * 2.9 / 8, 1.0 - 2.9 / 8]  # one an item, 3 items
    assert result.reward_stderr == pytest.approx(
        math.sqrt(sum(d * d for d in deviations) * 3 / 2) / 8
    )
    assert result.pass_at == pytest.approx(
        {
            1: (2 / 4 + 0 / 3 + 1 / 1) / 3,
            2: ((1 - 1 / 6) + 0) / 2,  # of four with two passes: C(2,2) / C(4,2) hold none
            4: 1.0,
        }
    )
    line = result.record()
    assert line["pass@2"] == result.pass_at[2] and "pass_at" not in line
    assert (line["samples"], line["pass_threshold"]) == (4, 0.5)
