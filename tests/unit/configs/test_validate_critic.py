"""What a critic, and estimators that know no group, cannot be combined with."""

from collections.abc import Mapping

import pytest

from configs.schema import RunConfig
from configs.validate import active_groups, find_warnings, validate_run

GAE = {"advantage": {"use": "gae"}}


def recipe(own: Mapping[str, object] = GAE, **rest: object) -> RunConfig:
    source = {
        "name": "s",
        "data": {"procedural": "reasoning_gym/lcm"},
        "rewards": [{"name": "r", "use": "exact"}],
        "sampling": {"max_tokens": 16},
    }
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 10,
            "model": {"path": "org/model"},
            "batch": {"groups_per_step": 1},
            "sources": [{**source, **own}],
            **rest,
        }
    )


def test_a_critic_is_started_exactly_where_values_are_needed() -> None:
    assert "critic" in active_groups(recipe())
    assert "critic" not in active_groups(recipe({"advantage": {"use": "reinforce_pp"}}))
    assert validate_run(recipe()) == []
    idle = find_warnings(recipe({}, critic={"warmup_steps": 1}))
    assert "critic" in [w.where for w in idle]


def test_scopes_are_the_estimators_own_where_none_is_given() -> None:
    wanted = {
        "grpo": "group",
        "gae": "source",
        "reinforce_pp": "batch",
        "reinforce_pp_baseline": "batch",
        "remax": "group",
        "m:f": "group",
    }
    found = {u: recipe({"advantage": {"use": u}}).sources[0].scope for u in wanted}
    assert found == wanted


KL = {"kl": {"coef": 0.1, "placement": "reward", "target": 0.01}}
PROBLEMS: list[tuple[Mapping[str, object], Mapping[str, object], str]] = [
    ({**GAE, "advantage_scope": "group"}, {}, "sources.s.advantage_scope"),
    (
        {"advantage": {"use": "reinforce_pp"}, "advantage_scope": "group"},
        {},
        "sources.s.advantage_scope",
    ),
    (
        {**GAE, "difficulty": {"drop_zero_variance": True}},
        {},
        "sources.s.difficulty.drop_zero_variance",
    ),
    ({"advantage": {"use": "gae", "args": {"lam": 1.5}}}, {}, "sources.s.advantage.args.lam"),
    ({"advantage": {"use": "gae", "args": {"gamma": 0}}}, {}, "sources.s.advantage.args.gamma"),
    (GAE, {"algorithm": KL}, "algorithm.kl.target"),
    (GAE, {"critic": {"warmup_steps": 10}}, "critic.warmup_steps"),
    (GAE, {"critic": {"optimizer": {"betas": [0.9, 1]}}}, "critic.optimizer.betas"),
    (GAE, {"critic": {"offload": "optimizer", "zero_stage": 0}}, "critic.offload"),
    (GAE, {"critic": {"path": "./nowhere"}}, "critic.path"),
    (GAE, {"critic": {"actors": {"gpus": 1}}}, "critic.actors.gpus"),
    (
        {},
        {"reference": {"actors": {"colocate_with": "critic"}}, "algorithm": {"kl": {"coef": 1}}},
        "reference.actors.colocate_with",
    ),
    (
        {
            "advantage": {"use": "remax"},
            "objective": {"combine": "normalize_then_sum"},
        },
        {},
        "sources.s.advantage",
    ),
]


@pytest.mark.parametrize(("own", "rest", "where"), PROBLEMS, ids=lambda p: str(p)[:40])
def test_what_cannot_be_is_named(
    own: Mapping[str, object], rest: Mapping[str, object], where: str
) -> None:
    assert [p.where for p in validate_run(recipe(own, **rest))] == [where]


def test_a_group_of_one_is_warned_of_only_where_it_teaches_nothing() -> None:
    for use, warned in (("grpo", True), ("gae", False), ("reinforce_pp", False), ("remax", False)):
        own = {"advantage": {"use": use}, "group_size": 1}
        found = [w.where for w in find_warnings(recipe(own))]
        assert ("sources.s.group_size" in found) is warned


def test_the_critic_reads_the_run_with_its_own_section() -> None:
    cfg = recipe(critic={"path": "org/other", "zero_stage": 3, "optimizer": {"lr": 3e-5}})
    own = cfg.of_critic
    assert (own.model.path, own.trainer.zero_stage) == ("org/other", 3)
    assert own.trainer.optimizer.lr == 3e-5
    assert recipe().of_critic.model.path == "org/model"
    lora, nvme = {"rank": 4}, {"path": "/disk"}  # the policy's: ranks of both would share files
    trainer = {"lora": lora, "nvme": nvme, "zero_stage": 3, "offload": "optimizer"}
    own = recipe(trainer={**trainer, "sequence_parallel": 2}).of_critic.trainer
    assert (own.lora, own.nvme, own.sequence_parallel, own.offload) == (None, None, 1, "none")


def test_optimizer_steps_are_counted() -> None:
    batch = {"groups_per_step": 4, "num_minibatches": 2, "epochs_per_step": 3}
    assert recipe(batch=batch).policy_updates == 10 * 6
    assert recipe(batch=batch, critic={"warmup_steps": 4}).policy_updates == 6 * 6
    assert recipe({}, batch=batch, critic={"warmup_steps": 4}).policy_updates == 10 * 6
