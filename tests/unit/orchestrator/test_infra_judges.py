"""Judges on Kubernetes: whatever their name, an infra file calls them `judge`."""

from pathlib import Path

import pytest

from configs.infra import InfraConfig, SecretConfig
from configs.judges import EndpointConfig, JudgeConfig, JudgeEnginesConfig, RewardModelConfig
from configs.load import load_infra, load_recipe
from configs.schema import RunConfig
from orchestrator.deploy.infra_check import check_recipe_on, place_roles
from orchestrator.deploy.pods import GROUP_LABEL
from orchestrator.planning.plan import plan_bundles

ROOT = Path(__file__).parents[3]


def judged() -> RunConfig:
    recipe = load_recipe(ROOT / "configs" / "recipes" / "eight_gpus.yaml")
    model = recipe.model.model_copy(update={"path": "org/judge"})
    far = EndpointConfig(base_url="https://x/v1", model="m", api_key_env="FAR_KEY")
    judges = {
        "own": JudgeConfig(engines=JudgeEnginesConfig(model=model)),
        "far": JudgeConfig(endpoint=far),
    }
    models = {"rm": RewardModelConfig(model=model)}
    return recipe.model_copy(update={"judges": judges, "reward_models": models})


def infra(*, extra: bool) -> InfraConfig:
    found = load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml")
    more = found.groups[0].model_copy(update={"name": "judging", "roles": ("judge",), "gpus": 0})
    return found.model_copy(update={"groups": (*found.groups, more)}) if extra else found


def test_judges_and_reward_models_go_to_the_group_that_takes_judges():
    placed = place_roles(judged(), infra(extra=True))
    asked = ("judges.own", "reward_models.rm")
    selectors = {m.role: b.labels[GROUP_LABEL] for b in plan_bundles(placed) for m in b.members}
    assert {selectors.pop(role) for role in asked} == {"judging"}
    assert "judging" not in selectors.values()
    assert placed.judges["far"] == judged().judges["far"]


def test_the_key_of_an_endpoint_must_be_among_the_secrets():
    found = check_recipe_on(judged(), infra(extra=True))
    assert "judges.far.endpoint.api_key_env" in [p.where for p in found]


@pytest.mark.parametrize("allow", [(), ("10.1.0.0/16",)])
def test_isolated_graders_have_no_key_and_reach_no_endpoint(allow: tuple[str, ...]):
    found = infra(extra=True)
    graders = found.groups[1].model_copy(update={"allow_egress": allow})
    groups = (found.groups[0], graders, *found.groups[2:])
    places = {
        p.where: p for p in check_recipe_on(judged(), found.model_copy(update={"groups": groups}))
    }
    assert "isolated and gets no secret" in places["judges.far.endpoint.api_key_env"].what
    assert ("judges.far.endpoint.base_url" in places) is (not allow)
    open_ = graders.model_copy(update={"isolated": False})
    secrets = {"FAR_KEY": SecretConfig(secret="judge", key="key")}
    groups = (found.groups[0], open_, *found.groups[2:])
    reached = found.model_copy(update={"groups": groups, "secrets": secrets})
    assert [p for p in check_recipe_on(judged(), reached) if "endpoint" in p.where] == []


def test_every_kind_of_actor_finds_its_group_and_room_is_checked():
    """A critic, teachers, reward models, judges and the reference, each in the group that takes it
    or refused with the role that no group takes."""
    recipe = load_recipe(
        ROOT / "configs" / "recipes" / "eight_gpus.yaml",
        [
            "sources.0.advantage={use: gae}",
            "critic.actors={count: 2, cpus: 1, gpus: 1}",
            "teachers.big={model: {path: org/big}, actors: {count: 1, cpus: 1, gpus: 1}}",
        ],
    )
    alone = infra(extra=True)
    refused = {p.where for p in check_recipe_on(recipe, alone)}
    assert "groups.*.roles: critic" in refused
    roles = (*alone.groups[0].roles, "critic")
    gpu = alone.groups[0].model_copy(update={"roles": roles, "replicas": 2})
    judging = alone.groups[2].model_copy(update={"gpus": 1})
    fits = alone.model_copy(update={"groups": (gpu, alone.groups[1], judging)})
    assert check_recipe_on(recipe, fits) == []
    placed = place_roles(recipe, fits)
    selectors = {m.role: b.labels[GROUP_LABEL] for b in plan_bundles(placed) for m in b.members}
    assert selectors["critic"] == "gpu" and selectors["teachers.big"] == "judging"
    short = alone.model_copy(update={"groups": (gpu, alone.groups[1], alone.groups[2])})
    assert [p.where for p in check_recipe_on(recipe, short)] == ["teachers.big.actors"]
