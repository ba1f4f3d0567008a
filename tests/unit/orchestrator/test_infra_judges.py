"""Judges on Kubernetes: whatever their name, an infra file calls them `judge`."""

from pathlib import Path

from configs.infra import InfraConfig
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
