"""From a step's plan over the critic's ranks to what trainer and critic then see, with Ray's object
store and the network replaced: every token's advantage is that of naive GAE, whitened."""

import asyncio
import random
from collections.abc import Awaitable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from actors.critic import CriticActor
from actors.fetch import fetch_stored, fetch_value_batches, lay_out
from actors.groups import CriticGroup
from actors.supervisor import Member, Supervisor
from configs.schema import RunConfig
from rollouts.advantages import STD_EPS
from rollouts.packing import plan_minibatches
from rollouts.sample_files import read_samples, write_samples
from rollouts.scopes import scale_step
from rollouts.types import (
    F32,
    GaeTerms,
    GroupSummary,
    MicroBatch,
    MicroBatchPlan,
    SampleHandle,
    TrainBatch,
    TrainingSample,
)
from rollouts.values import ValueScores
from tests.made_groups import made_group

GAMMA, LAM, COEF = 0.9, 0.8, 0.1


class Store:
    """Ray's object store."""

    def __init__(self) -> None:
        self.held: list[object] = []

    def put(self, value: object) -> int:
        self.held.append(value)
        return len(self.held) - 1

    def get(self, refs: list[int], *, timeout: float) -> list[object]:
        return [self.held[r] for r in refs]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    held = Store()
    monkeypatch.setattr(ray, "put", held.put)
    monkeypatch.setattr(ray, "get", held.get)
    yield held


def said_of(token_ids: np.ndarray) -> F32:
    """Values as a function of the token, so that any layout gives the same."""
    return np.sin(token_ids.astype(np.float32))


class FakeEngine:
    """Says values; notes what it was asked, which every rank must be alike."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def values(self, batches: list[MicroBatch]) -> list[F32]:
        self.asked.append(len(batches))
        return [np.where(b.loss_mask, said_of(b.token_ids), 0) for b in batches]


def recipe(*scopes: str | None, count: int) -> RunConfig:
    """A source with a critic for each scope, and one without."""
    plain = {
        "name": "plain",
        "data": {"procedural": "reasoning_gym/lcm"},
        "rewards": [{"name": "r", "use": "exact"}],
        "advantage": {"use": "rloo"},
    }
    gae = {"use": "gae", "args": {"gamma": GAMMA, "lam": LAM}}
    valued = [
        {**plain, "name": f"s{i}", "advantage": gae, "advantage_scope": scope}
        for i, scope in enumerate(scopes)
    ]
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 4,
            "model": {"path": "m"},
            "batch": {"groups_per_step": 1},
            "sources": [*valued, plain],
            "algorithm": {"kl": {"coef": COEF, "placement": "reward", "estimator": "k1"}},
            "critic": {"actors": {"count": count}},
        }
    )


def make_sample(dice: np.random.Generator, group: str, index: int, valued: bool) -> TrainingSample:
    size = int(dice.integers(3, 12))
    mask = dice.random(size) < 0.7
    mask[0], mask[1] = False, True

    def stream(drawn: np.ndarray) -> F32:
        return np.where(mask, drawn, 0).astype(np.float32)

    zeros = np.zeros(size, np.float32)
    rewards = stream(dice.normal(size=size))
    terms = GaeTerms(rewards=rewards, gamma=GAMMA, lam=LAM, kl_coef=COEF) if valued else None
    taught = stream(dice.normal(size=size)) if dice.random() < 0.4 else None
    return TrainingSample(
        group_id=group,
        index=index,
        token_ids=dice.integers(0, 100, size).astype(np.int32),
        loss_mask=mask,
        rollout_logprobs=stream(dice.normal(size=size)),
        advantages=zeros if valued else stream(np.full(size, dice.normal())),
        loss_weight=zeros + 1,
        kl_coef=zeros if valued else zeros + np.float32(COEF),
        clip_low=zeros,
        clip_high=zeros,
        temperature=zeros + 1,
        gae=terms,
        taught=taught,
    )


def references(sample: TrainingSample) -> F32:
    return (sample.rollout_logprobs + 0.3 * np.cos(sample.token_ids)).astype(np.float32)


def make_step(
    cfg: RunConfig, store: Store, dice: np.random.Generator
) -> tuple[list[GroupSummary], dict[tuple[int, int], tuple[str, TrainingSample]]]:
    groups: list[GroupSummary] = []
    known: dict[tuple[int, int], tuple[str, TrainingSample]] = {}
    for number in range(6):
        source = cfg.sources[number % len(cfg.sources)]
        own = tuple(
            make_sample(dice, f"g{number}", i, source.needs_values)
            for i in range(int(dice.integers(1, 4)))
        )
        ref = store.put(own)
        handles: list[SampleHandle] = []
        for row, s in enumerate(own):
            known[ref, row] = source.name, s
            handles.append(
                SampleHandle(
                    ref=ref,
                    row=row,
                    num_tokens=len(s.token_ids),
                    num_loss_tokens=int(s.loss_mask.sum()),
                    needs_values=source.needs_values,
                )
            )
        groups.append(made_group(group_id=f"t{number}", source=source.name, samples=handles))
    return groups, known


def naive_gae(sample: TrainingSample) -> tuple[np.ndarray, np.ndarray]:
    """The definition: sums of discounted differences, token by token."""
    assert sample.gae is not None
    at = np.flatnonzero(sample.loss_mask)
    values = [*said_of(sample.token_ids)[at].astype(np.float64), 0.0]
    kl = (sample.rollout_logprobs - references(sample))[at].astype(np.float64)
    rewards = sample.gae.rewards[at] - COEF * kl
    deltas = [rewards[t] + GAMMA * values[t + 1] - values[t] for t in range(len(at))]
    found = [
        sum((GAMMA * LAM) ** (later - t) * deltas[later] for later in range(t, len(at)))
        for t in range(len(at))
    ]
    return np.array(found), np.array(found) + np.array(values[:-1])


async def score(cfg: RunConfig, batch: TrainBatch, engines: list[FakeEngine]) -> TrainBatch:
    async def answer(actor: CriticActor, plan: Any) -> tuple[ValueScores | None, ...]:
        return actor.score(plan)

    members: list[Member] = []
    for rank, engine in enumerate(engines):
        actor = CriticActor(cfg, rank, len(engines))
        actor._engine = engine  # type: ignore[assignment]

        def call(plan: Any, actor: CriticActor = actor) -> Awaitable[Any]:
            return answer(actor, plan)

        handle: Any = SimpleNamespace(score=SimpleNamespace(remote=call))
        members.append(Member(role="critic", index=rank, handle=handle))
    return await CriticGroup(members, Supervisor(cfg.health), cfg.health).score(batch)


@pytest.mark.parametrize("seed", range(24))
def test_whatever_the_layout_tokens_get_whitened_gae(
    store: Store, seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    dice = np.random.default_rng(seed)
    scopes = [rng.choice([None, "source", "batch"]) for _ in range(2)]
    count, dp, cuts = rng.choice([1, 2, 3]), rng.choice([1, 2]), rng.choice([1, 2, 3])
    cfg = recipe(*scopes, count=count)
    groups, known = make_step(cfg, store, dice)
    minibatches = plan_minibatches(
        [s for g in groups for s in g.samples], dp=dp, num_minibatches=cuts, max_tokens=20
    )
    scored = [
        # as the reference leaves it
        _with_references(m, known, store)
        for m in minibatches
    ]
    batch = TrainBatch(step=1, minibatches=tuple(scored))
    engines = [FakeEngine() for _ in range(count)]
    batch = asyncio.run(score(cfg, batch, engines))
    assert len({tuple(e.asked) for e in engines}) == 1, "ranks must score in lockstep"
    groups, batch = scale_step(cfg, groups, batch)

    pools: dict[str, list[np.ndarray]] = {}
    for name, s in known.values():
        scope = cfg.source(name).scope
        if s.gae is not None:
            pools.setdefault(name if scope == "source" else scope, []).append(naive_gae(s)[0])
    seen = 0
    for plan in (p for m in batch.minibatches for row in m.grid for p in row):
        stored = fetch_stored([plan], timeout_s=1)[0]
        write_samples(tmp_path / "kept.npz", stored)  # as a run that is to be replayed does
        micro = lay_out(read_samples(tmp_path / "kept.npz"))
        (values,) = fetch_value_batches([plan], timeout_s=1)
        targets = values.returns[values.tokens.loss_mask]
        for place, handle in enumerate(plan.samples):
            assert isinstance(handle.ref, int)
            name, s = known[handle.ref, handle.row]
            start, end = micro.cu_seqlens[place : place + 2]
            mine = micro.advantages[start:end]
            assert not mine[~s.loss_mask].any()
            taught = 0 if s.taught is None else s.taught
            if s.gae is None:
                assert np.array_equal(mine, s.advantages + taught)
                continue
            raw, returns = naive_gae(s)
            scope = cfg.source(name).scope
            pool = np.concatenate(pools[name if scope == "source" else scope])
            wanted = (raw - pool.mean()) / (pool.std() + STD_EPS)
            wanted = wanted + (0 if s.taught is None else s.taught[s.loss_mask])
            np.testing.assert_allclose(mine[s.loss_mask], wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(targets[: len(returns)], returns, rtol=1e-4, atol=1e-5)
            targets = targets[len(returns) :]
            seen += 1
        assert len(targets) == 0
    assert seen == sum(s.gae is not None for _, s in known.values())
    planned = {id(s) for m in batch.minibatches for r in m.grid for p in r for s in p.samples}
    assert planned == {id(s) for g in groups for s in g.samples}, "the ledger counts by handle"


def _with_references(minibatch: Any, known: Any, store: Store) -> Any:
    from dataclasses import replace

    def scored(plan: Any) -> Any:
        rows = tuple(references(known[s.ref, s.row][1]) for s in plan.samples)
        return replace(plan, ref_logprobs=store.put(rows))

    return replace(minibatch, grid=tuple(tuple(map(scored, row)) for row in minibatch.grid))


def test_a_batch_without_values_asks_nobody(store: Store) -> None:
    cfg = recipe(None, count=2)
    groups, _ = make_step(cfg, store, np.random.default_rng(0))
    plain = [s for g in groups for s in g.samples if not s.needs_values]
    minibatches = plan_minibatches(plain, dp=1, num_minibatches=1, max_tokens=20)
    batch = TrainBatch(step=1, minibatches=minibatches)
    engines = [FakeEngine(), FakeEngine()]
    assert asyncio.run(score(cfg, batch, engines)) is batch
    assert [e.asked for e in engines] == [[], []]


def test_a_pair_comes_as_two_samples_side_by_side(store: Store) -> None:
    dice = np.random.default_rng(0)
    pairs = tuple(
        (make_sample(dice, f"g{i}", 0, False), make_sample(dice, f"g{i}", 1, False))
        for i in range(3)
    )
    ref = store.put(pairs)
    handles = [
        SampleHandle(
            ref=ref,
            row=i,
            num_tokens=sum(len(s.token_ids) for s in pair),
            num_loss_tokens=sum(int(s.loss_mask.sum()) for s in pair),
        )
        for i, pair in enumerate(pairs)
    ]
    plan = MicroBatchPlan(samples=(handles[2], handles[0]))
    (stored,) = fetch_stored([plan], timeout_s=1)
    assert [s.sample for s in stored] == [*pairs[2], *pairs[0]]
