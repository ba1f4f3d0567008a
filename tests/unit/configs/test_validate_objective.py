"""What a recipe says of the objective in vain is told, and what means something is not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_recipe, save_config
from configs.schema import RunConfig
from configs.validate import find_warnings, validate_run

REWARD = {"name": "r", "use": "exact"}
STEPS = {**REWARD, "credit": {}}


def recipe(own: Mapping[str, object] | None = None, **rest: Any) -> RunConfig:
    source = {
        "name": "s",
        "data": {"procedural": "reasoning_gym/lcm"},
        "rewards": [REWARD],
        "sampling": {"max_tokens": 16},
        **(own or {}),
    }
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 10,
            "model": {"path": "org/model"},
            "sources": [source],
            **rest,
            "batch": {"groups_per_step": 4, **rest.get("batch", {})},
        }
    )


def algorithm(**section: object) -> dict[str, object]:
    return {"algorithm": section}


TWICE = {"batch": {"num_minibatches": 2}}
AHEAD = {"batch": {"max_staleness": 2}}
GDPO = {"objective": {"combine": "normalize_then_sum"}}
GAE = {"advantage": {"use": "gae"}}
CASES: list[tuple[Mapping[str, object], Mapping[str, Any], str, Mapping[str, Any]]] = [
    # of the source, of the run, where the warning is, what of the run makes it go away
    ({}, algorithm(kl={"coef": 0.1, "gain": 0.3}), "algorithm.kl.gain",
     algorithm(kl={"coef": 0.1, "gain": 0.3, "target": 0.1})),
    ({}, algorithm(kl={"estimator": "k2"}), "algorithm.kl",
     algorithm(kl={"estimator": "k2", "coef": 0.1})),
    ({}, algorithm(kl={"placement": "reward", "estimator": "k1"}), "algorithm.kl",
     algorithm(kl={"placement": "reward", "estimator": "k1", "coef": 0.1})),
    ({}, algorithm(kl={"coef": 0.1, "placement": "reward"}), "algorithm.kl.estimator",
     algorithm(kl={"coef": 0.1, "placement": "reward", "estimator": "k1"})),
    ({}, algorithm(entropy={"coef": 0.1, "step": 0.1}), "algorithm.entropy.step",
     algorithm(entropy={"coef": 0.1, "step": 0.1, "target": 1.0})),
    ({}, algorithm(correction={"weight": "none", "high": 3}), "algorithm.correction.high",
     algorithm(correction={"high": 3})),
    ({}, algorithm(correction={"weight": "none", "level": "sequence"}),
     "algorithm.correction.level", algorithm(correction={"level": "sequence"})),
    ({}, {**AHEAD, **algorithm(correction={"weight": "none"})}, "algorithm.correction.weight",
     {**AHEAD, **algorithm(correction={"weight": "none", "max_sequence_kl": 0.1})}),
    ({"max_staleness": 1}, algorithm(correction={"weight": "none"}),
     "algorithm.correction.weight", {}),
    ({}, {"trainer": {"optimizer": {"min_lr_ratio": 0.1}}}, "trainer.optimizer.min_lr_ratio",
     {"trainer": {"optimizer": {"min_lr_ratio": 0.1, "decay": "cosine"}}}),
    (GAE, {"critic": {"optimizer": {"min_lr_ratio": 0.1}}}, "critic.optimizer.min_lr_ratio",
     {"critic": {"optimizer": {"min_lr_ratio": 0.1, "decay": "linear"}}}),
    (GAE, {"critic": {"value_clip": 0.1}}, "critic.value_clip",
     {**TWICE, "critic": {"value_clip": 0.1}}),
    ({"kl_coef": 0.1}, {"reference": {"refresh": {"every": 1, "decay": 0.5}}},
     "reference.refresh.decay",
     {"reference": {"refresh": {"every": 1, "decay": 0.5, "mode": "ema"}}}),
    ({"kl_coef": 0.1}, {"reference": {"refresh": {"every": 11}}}, "reference.refresh.every",
     {"reference": {"refresh": {"every": 10}}}),
    ({}, {"replay": {"keep": 3}}, "replay.keep", {"replay": {"keep": 3, "save": True}}),
]  # fmt: skip


@pytest.mark.parametrize(("own", "said", "where", "mended"), CASES, ids=[c[2] for c in CASES])
def test_what_nothing_reads_is_said(
    own: Mapping[str, object], said: Mapping[str, Any], where: str, mended: Mapping[str, Any]
) -> None:
    assert where in [w.where for w in find_warnings(recipe(own, **said))]
    assert where not in [w.where for w in find_warnings(recipe(own, **mended))]


SOURCES: list[tuple[Mapping[str, object], str, Mapping[str, object]]] = [
    ({"rewards": [STEPS], "group_size": 1, "advantage": {"use": "reinforce_pp"}},
     "sources.s.group_size",
     {"rewards": [STEPS], "group_size": 2, "advantage": {"use": "reinforce_pp"}}),
    ({"rewards": [STEPS], "group_size": 1, "advantage": {"use": "remax"}},
     "sources.s.group_size",
     {"rewards": [STEPS], "group_size": 1, "advantage": {"use": "gae"}}),
    ({**GDPO, "advantage_scope": "group"}, "sources.s.advantage_scope", GDPO),
    ({**GDPO, "advantage_scope": "group"}, "sources.s.advantage_scope",
     {**GDPO, "advantage_scope": "batch"}),
]  # fmt: skip


@pytest.mark.parametrize(("own", "where", "mended"), SOURCES)
def test_what_a_source_says_in_vain_is_said(
    own: Mapping[str, object], where: str, mended: Mapping[str, object]
) -> None:
    assert where in [w.where for w in find_warnings(recipe(own))]
    assert where not in [w.where for w in find_warnings(recipe(mended))]


@pytest.mark.parametrize("scope", ["source", "batch"])
def test_advantages_of_zero_narrow_nobody_s_spread(scope: str) -> None:
    none = {"advantage": {"use": "none"}, "kl_coef": 0.1}
    assert validate_run(recipe(none)) == []
    (problem,) = validate_run(recipe({**none, "advantage_scope": scope}))
    assert problem.where == "sources.s.advantage_scope"


def test_groups_that_never_have_an_advantage_are_not_filtered_by_it() -> None:
    none = {"advantage": {"use": "none"}, "difficulty": {"drop_zero_variance": True}}
    (problem,) = validate_run(recipe({**none, "kl_coef": 0.1}))
    assert problem.where == "sources.s.difficulty.drop_zero_variance"


@pytest.mark.parametrize("use", ["reinforce_pp", "remax"])
def test_a_stage_of_single_rollouts_is_sound_where_one_teaches(use: str) -> None:
    stages = [{"group_size": {"s": 1}}]
    where = "stages.0.group_size.s"
    assert where in [w.where for w in find_warnings(recipe(stages=stages))]
    alone = recipe({"advantage": {"use": use}}, stages=stages)
    assert where not in [w.where for w in find_warnings(alone)]


@pytest.mark.parametrize(
    "said",
    [
        {},
        TWICE,
        algorithm(loss={"use": "trust_region"}),
        algorithm(correction={"weight": "none"}),
        algorithm(kl={"coef": 0.1}),
    ],
)
def test_a_saved_recipe_is_told_what_the_recipe_was(
    said: Mapping[str, Any], tmp_path: Path
) -> None:
    """Saving writes every default; that says nothing of what is meant."""
    cfg = recipe(**said)
    save_config(cfg, tmp_path / "config.yaml")
    assert find_warnings(load_recipe(tmp_path / "config.yaml")) == find_warnings(cfg)


@pytest.mark.parametrize(
    ("uses", "alone"),
    [
        (("grpo", "grpo"), []),
        (("grpo", "reinforce_pp_baseline"), []),
        (("reinforce_pp", "reinforce_pp"), []),
        # one subtracts the step's mean and one does not: they share nothing
        (("grpo", "reinforce_pp"), [0, 1]),
        (("gae", "reinforce_pp"), [0, 1]),
        (("gae", "gae"), []),
    ],
)
def test_a_batch_of_one_source_is_said(uses: tuple[str, str], alone: list[int]) -> None:
    first = recipe().model_dump(mode="json")["sources"][0]
    sources = [
        {**first, "name": f"s{i}", "advantage": {"use": use}, "advantage_scope": "batch"}
        for i, use in enumerate(uses)
    ]
    found = [w.where for w in find_warnings(recipe(sources=sources))]
    scopes = [w for w in found if w.endswith("advantage_scope")]
    assert scopes == [f"sources.s{i}.advantage_scope" for i in alone]
