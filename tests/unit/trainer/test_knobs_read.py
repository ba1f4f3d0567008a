"""That the knobs of trainer, critic and reference reach what they are about."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import trainer.engine
import trainer.reference_weights
import trainer.scorer
from actors.critic import CriticActor
from actors.reference import ReferenceActor
from actors.trainer import TrainerActor
from configs.deepspeed import deepspeed_config
from configs.schema import RunConfig
from rollouts.packing import assemble
from rollouts.types import TrainingSample
from rollouts.values import ValueBatch
from trainer.critic import CriticEngine
from trainer.engine import PolicyEngine

OPTIMIZER = {"lr": 3e-4, "betas": [0.8, 0.7], "eps": 1e-5, "weight_decay": 0.3}


def recipe(**sections: Any) -> RunConfig:
    source = {
        "name": "s",
        "data": {"procedural": "reasoning_gym/lcm"},
        "rewards": [{"name": "r", "use": "exact"}],
        "advantage": {"use": "gae"},
    }
    base = {
        "name": "t",
        "num_steps": 10,
        "model": {"path": "m"},
        "sources": [source],
        "batch": {"groups_per_step": 4, **sections.pop("batch", {})},
    }
    return RunConfig.model_validate({**base, **sections})


@pytest.mark.parametrize("role", ["trainer", "critic"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_optimizer_is_the_recipe_s(role: str, device: Any) -> None:
    cfg = recipe(**{role: {"optimizer": {**OPTIMIZER, "max_grad_norm": 0.7}}})
    built: Any = deepspeed_config(cfg if role == "trainer" else cfg.of_critic, device=device)
    assert {n: built["optimizer"]["params"][n] for n in OPTIMIZER} == OPTIMIZER
    assert built["gradient_clipping"] == 0.7
    other: Any = deepspeed_config(cfg.of_critic if role == "trainer" else cfg, device=device)
    assert other["gradient_clipping"] == 1.0
    assert other["optimizer"]["params"]["lr"] == 1e-6


@pytest.mark.parametrize("role", ["trainer", "critic"])
@pytest.mark.parametrize(
    ("knobs", "zero"),
    [
        ({"zero_stage": 0}, {"stage": 0}),
        ({"zero_stage": 1}, {"stage": 1}),
        ({"zero_stage": 1, "offload": "optimizer"}, {"stage": 1, "offload_optimizer": True}),
        (
            {"zero_stage": 3, "offload": "parameters"},
            {"stage": 3, "offload_optimizer": True, "offload_param": True},
        ),
    ],
)
def test_what_is_partitioned_and_offloaded(
    role: str, knobs: dict[str, Any], zero: dict[str, Any]
) -> None:
    cfg = recipe(**{role: knobs})
    built: Any = deepspeed_config(cfg if role == "trainer" else cfg.of_critic, device="cpu")
    found = built["zero_optimization"]
    seen = {n: bool(found[n]) if n != "stage" else found[n] for n in zero}
    assert seen == zero
    assert {n for n in found if n.startswith("offload")} == set(zero) - {"stage"}


def test_the_disk_is_driven_as_the_recipe_says() -> None:
    nvme = {"path": "/d", "buffers": 5, "block_kib": 256, "queue_depth": 3, "threads": 2}
    knobs = {"zero_stage": 3, "offload": "optimizer", "nvme": nvme, "actors": {"gpus": 1}}
    built: Any = deepspeed_config(recipe(trainer=knobs), device="cuda")
    wanted = {"block_size": 256 * 1024, "queue_depth": 3, "intra_op_parallelism": 2}
    assert {n: built["aio"][n] for n in wanted} == wanted
    assert built["zero_optimization"]["offload_optimizer"]["buffer_count"] == 5


@pytest.mark.parametrize("clip", [0.1, 0.5, None])
def test_values_are_clipped_as_the_recipe_says(clip: float | None) -> None:
    """Value 1 from 0, return 0: the clipped value is nearer, so that the plain error counts; return
    2: the clipped one is further, and counts."""
    engine: Any = CriticEngine.__new__(CriticEngine)
    engine.cfg = recipe(critic={"value_clip": clip})
    engine.device = torch.device("cpu")
    engine._engine = lambda *streams: torch.tensor([0.0, 1.0, 1.0], requires_grad=True)
    ones = np.ones(3, np.float32)
    sample = TrainingSample(
        group_id="g",
        index=0,
        token_ids=np.arange(3, dtype=np.int32),
        loss_mask=np.array([False, True, True]),
        rollout_logprobs=ones,
        advantages=ones,
        loss_weight=ones,
        kl_coef=ones,
        clip_low=ones,
        clip_high=ones,
        temperature=ones,
    )
    batch = ValueBatch(
        tokens=assemble([sample], None), values=0 * ones, returns=np.array([0, 0, 2], np.float32)
    )
    total, _ = engine._loss(batch)
    assert total.item() == pytest.approx(0.5 + 0.5 * ((2 - clip) ** 2 if clip else 1))


@pytest.mark.parametrize("role", ["trainer", "critic"])
@pytest.mark.parametrize(
    ("stage", "asked", "recompute"),
    [(2, False, "off"), (3, False, "off"), (2, True, "non_reentrant"), (3, True, "reentrant")],
)
def test_activations_are_recomputed_where_that_is_asked(
    role: str, stage: int, asked: bool, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    import trainer.zero_engine as module

    monkeypatch.setattr(module, "partitioned_loading", lambda settings: nullcontext())
    cfg = recipe(**{role: {"zero_stage": stage, "gradient_checkpointing": asked}})
    engine = PolicyEngine.__new__(PolicyEngine)
    engine.cfg = cfg if role == "trainer" else cfg.of_critic
    seen: list[str] = []
    monkeypatch.setattr(engine, "_load", seen.append)
    engine._load_model({})
    assert seen == [recompute]


def test_the_policy_is_loaded_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PolicyEngine.__new__(PolicyEngine)
    engine.cfg = recipe(trainer={"logprob_chunk": 77}, batch={"packing": "padded"})
    seen: dict[str, Any] = {}
    monkeypatch.setattr(trainer.engine, "load_policy", lambda cfg, **given: seen.update(given))
    engine._load("off")
    assert (seen["logprob_chunk"], seen["packing"]) == (77, "padded")


@pytest.mark.parametrize(
    ("actor", "group", "steps"),
    [
        # 10 steps, of which 4 warm the critic up; 2 mini-batches, 3 epochs
        (TrainerActor, "trainer", 6 * 6),
        (CriticActor, "critic", 10 * 6),
    ],
)
@pytest.mark.usefixtures("outside_ray")
def test_ranks_wait_and_schedules_last_as_long_as_the_recipe_says(
    actor: Any, group: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def join(group: str, store: object, **given: Any) -> None:
        seen.update(given, group=group)

    class Engine:
        def __init__(self, cfg: RunConfig, **given: Any):
            seen.update(given)

    cfg = recipe(
        batch={"num_minibatches": 2, "epochs_per_step": 3},
        critic={"warmup_steps": 4},
        trainer={"collective_timeout_s": 12.5},
    )
    monkeypatch.setattr("actors.ranks.join_ranks", join)
    monkeypatch.setattr(trainer.engine, "PolicyEngine", Engine)
    monkeypatch.setattr("trainer.critic.CriticEngine", Engine)
    actor(cfg, 0, 1).start("host", 1)
    assert (seen["timeout_s"], seen["total_optimizer_steps"]) == (12.5, steps)
    assert seen["group"] == group


class Follower:
    """Notes how it is made, and by how much it is to follow."""

    made: ClassVar[list[bool]] = []
    decays: ClassVar[list[float]] = []

    def __init__(self, network: object, *, average: bool):
        self.made.append(average)

    def follow(self, folder: Path, *, decay: float) -> str:
        self.decays.append(decay)
        return ""


@pytest.mark.parametrize(
    ("reference", "path", "average", "decays"),
    [
        ({}, "m", [], []),
        ({"path": "other"}, "other", [], []),
        ({"refresh": {"every": 2}}, "m", [False], [0.9]),
        ({"refresh": {"every": 2, "mode": "ema", "decay": 0.25}}, "m", [True], [0.25]),
    ],
)
@pytest.mark.usefixtures("outside_ray")
def test_the_reference_is_the_one_that_the_recipe_names(
    reference: dict[str, Any],
    path: str,
    average: list[bool],
    decays: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, object]] = []

    def load(model: Any, **given: object) -> SimpleNamespace:
        seen.append((model.path, given["logprob_chunk"]))
        return SimpleNamespace(network=None)

    monkeypatch.setattr(trainer.scorer, "ReferenceModel", load)
    monkeypatch.setattr(trainer.reference_weights, "Follower", Follower)
    Follower.made.clear()
    Follower.decays.clear()
    actor = ReferenceActor(recipe(reference=reference, trainer={"logprob_chunk": 9}))
    actor.start()
    if average:
        actor.follow(Path("folder"))
    assert seen == [(path, 9)]
    assert (Follower.made, Follower.decays) == (average, decays)


@pytest.mark.usefixtures("outside_ray")
def test_determinism_is_asked_of_torch_alone_where_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("trainer.determinism.make_deterministic", lambda: asked.append(True))
    monkeypatch.setattr(
        trainer.scorer, "ReferenceModel", lambda *a, **k: SimpleNamespace(network=None)
    )
    for wanted in (False, True):
        ReferenceActor(recipe(deterministic=wanted)).start()
        assert asked == [True] * wanted
