"""Recipe and infra file: what does not fit is refused, with its place and the remedy."""

import re
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_infra, load_recipe
from configs.schema import RunConfig
from orchestrator.deploy.infra_check import check_recipe_on, warn_recipe_on
from orchestrator.deploy.render import render
from tests.unit.orchestrator.infras import ROOT, Change, base, both, load, more, put


@pytest.fixture(scope="module")
def recipe() -> RunConfig:
    return load_recipe(ROOT / "configs" / "recipes" / "eight_gpus.yaml")


BROKEN: list[tuple[Change, str, str]] = [
    (put("nmae", "x"), "nmae", "unknown key"),
    (lambda d: d.pop("image"), "image", "missing"),
    (put("image", ""), "image", "is empty"),
    (put("name", "Node_Of_8"), "name", "Node_Of_8"),
    (put("namespace", "a b"), "namespace", "a b"),
    (put("kind", "pod"), "kind", "job"),
    (lambda d: d.pop("auth_secret"), "auth_secret", "missing"),
    (put("auth_secret", None), "auth_secret", "must be text"),
    (put("ray_version", "2.9.0"), "ray_version", "runs on Ray"),
    (put("groups", []), "groups", "at least 1"),
    (put("groups.0.cpus", 0), "cpus", "more than 0"),
    (put("groups.0.cpus", 1.5), "cpus", "whole number"),
    (put("groups.0.memory", "900"), "memory", "900"),
    (put("groups.0.memory", "512Mi"), "groups.gpu.memory", "1Gi"),
    (put("groups.0.memory", "64Gi"), "groups.gpu.shm", "counts against memory"),
    (put("groups.0.gpus", -1), "gpus", "at least 0"),
    (put("groups.0.replicas", 0), "replicas", "more than 0"),
    (put("groups.0.max_replicas", 0), "max_replicas", "more than 0"),
    (
        both(put("groups.0.replicas", 4), put("groups.0.max_replicas", 2)),
        "groups.gpu.max_replicas",
        "below replicas=4",
    ),
    (put("groups.1.name", "gpu"), "groups", "called `gpu`"),
    (put("groups.1.name", "headgroup"), "groups.headgroup.name", "KubeRay"),
    (put("groups.1.roles", ["reward", "trainer"]), "groups.reward.roles", "`gpu` does"),
    (put("groups.1.roles", ["reward", "reward"]), "groups.reward.roles", "twice"),
    (put("groups.1.roles", ["rewards"]), "roles", "Did you mean `reward`?"),
    (put("groups.1.labels", {"ray.io/x": "y"}), "groups.reward.labels.ray.io/x", "reserved"),
    (put("groups.1.labels", {"braid-group": "y"}), "labels.braid-group", "reserved"),
    (put("groups.1.labels", {"zone": "a b"}), "groups.reward.labels.zone", "no valid label"),
    (put("head.node_selector", {"a//b": "c"}), "head.node_selector.a//b", "no valid label"),
    (
        put("head.tolerations", [{"key": "a", "operator": "Equal"}]),
        "head.tolerations.a",
        "needs a value",
    ),
    (
        put("head.tolerations", [{"key": "a", "value": "b"}]),
        "head.tolerations.a",
        "`Exists` has none",
    ),
    (put("groups.0.allow_egress", ["10.0.0.0/8"]), "groups.gpu.allow_egress", "not isolated"),
    (put("groups.1.allow_egress", ["judge.local"]), "groups.reward.allow_egress", "CIDR"),
    (put("storage.mount", "shared"), "storage.mount", "absolute"),
    (put("storage.mount", "/tmp"), "storage.mount", "hide"),
    (put("storage.mount", "/home/braid"), "storage.mount", "hide"),
    (put("storage.mount", "/shared/"), "storage.mount", "Write it as /shared."),
    (
        both(lambda d: d["storage"].pop("size"), put("storage.storage_class", "fast")),
        "storage.storage_class",
        "without a size",
    ),
    (put("env", {"RAY_ADDRESS": "auto"}), "env.RAY_ADDRESS", "set by KubeRay"),
    (put("env", {"HOME": "/root"}), "env.HOME", "set by KubeRay, Ray or Braid"),
    (put("env", {"OPENAI_API_KEY": "sk-1"}), "env.OPENAI_API_KEY", "plain text"),
    (put("env", {"SETTING": "sk-proj-aaaaaaaaaaaaaaaa"}), "env.SETTING", "plain text"),
    (put("env", {"HF_TOKEN": "x"}), "env.HF_TOKEN", "among secrets"),
    (put("env", {"A B": "x"}), "env", "A B"),
    (put("secrets", {"REDIS_PASSWORD": {"secret": "a", "key": "b"}}), "REDIS_PASSWORD", "itself"),
    (put("secrets", {"X": {"secret": "a", "key": "b/c"}}), "secrets.X.key", "b/c"),
    (put("queue", {"scheduler": "slurm", "name": "a"}), "queue.scheduler", "kueue"),
    (
        both(put("queue", {"scheduler": "kueue", "name": "a"}), put("groups.1.max_replicas", 3)),
        "groups.reward.max_replicas",
        "no autoscaling",
    ),
    (
        both(
            put("queue", {"scheduler": "kueue", "name": "a"}),
            *(more(name=f"g{i}") for i in range(6)),
        ),
        "groups",
        "at most 7",
    ),
    (
        put("queue", {"scheduler": "kai", "name": "a", "priority_class": "b"}),
        "queue.priority_class",
        "no label",
    ),
    (put("network", {"resource": "rdma/hca"}), "network.resource", "profiles rdma and efa"),
    (
        both(put("network", {"host_network": True}), put("groups.0.isolated", True)),
        "groups.gpu.isolated",
        "do not apply",
    ),
    (put("retry", {"attempts": -1}), "retry.attempts", "at least 0"),
    (put("run_as_user", 0), "run_as_user", "more than 0"),
    # with the recipe
    (put("groups.0.roles", ["rollout", "trainer"]), "groups.*.roles: reference", "no group"),
    (
        both(put("groups.0.roles", ["rollout", "trainer"]), more(roles=["reference"], gpus=8)),
        "reference.actors.colocate_with",
        "Give both roles to one group",
    ),
    (put("groups.0.gpus", 4), "rollout.actors", "find no pod with room"),
    (put("groups.0.cpus", 30), "rollout.actors", "find no pod with room"),
    (put("groups.1.cpus", 3), "reward.actors", "2 of its bundles"),
]


ALLOWED = re.compile("must be |needs at least|at most|a quantity is|has letters")
"""Words in which a message says what is allowed, which is a remedy too."""


@pytest.mark.parametrize(("change", "where", "what"), BROKEN)
def test_a_broken_infra_file_is_refused_with_its_place_and_remedy(
    change: Change, where: str, what: str, recipe: RunConfig, tmp_path: Path
):
    data = base()
    change(data)
    with pytest.raises(ConfigError) as caught:
        render(recipe, load(data, tmp_path))
    said = str(caught.value)
    assert where in said and what in said
    assert all(p.fix or ALLOWED.search(p.what) for p in caught.value.problems), said


def test_all_problems_are_told_at_once(recipe: RunConfig, tmp_path: Path):
    data = base()
    put("storage.mount", "shared")(data)
    put("groups.1.name", "headgroup")(data)
    put("env", {"MY_TOKEN": "x"})(data)
    with pytest.raises(ConfigError) as caught:
        render(recipe, load(data, tmp_path))
    assert len(caught.value.problems) == 3


def test_what_lies_on_this_machine_alone_is_refused(tmp_path: Path):
    cfg = load_recipe(ROOT / "configs" / "recipes" / "quickstart.yaml")
    infra = load_infra(ROOT / "k8s" / "infra" / "cpu.yaml")
    (problem,) = check_recipe_on(cfg, infra)
    assert problem.where == "model.path" and "/shared" in problem.fix


def test_a_name_that_kubernetes_cannot_take(recipe: RunConfig):
    infra = load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml")
    for name, says in (("a" * 48, "48 characters"), ("1-run", "starts with a letter")):
        (problem,) = check_recipe_on(recipe.model_copy(update={"name": name}), infra)
        assert problem.where == "name" and says in problem.what


def test_labels_that_no_group_offers_are_refused():
    cfg = load_recipe(ROOT / "configs" / "recipes" / "multi_node.yaml")
    infra = load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml")
    found = {p.where: p.what for p in check_recipe_on(cfg, infra)}
    assert "no such label" in found["trainer.actors.labels.pool"]


def test_online_tracking_needs_its_secret(recipe: RunConfig):
    logging = recipe.logging.model_copy(update={"wandb": "online"})
    infra = load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml")
    (problem,) = check_recipe_on(recipe.model_copy(update={"logging": logging}), infra)
    assert "WANDB_API_KEY" in problem.what


def test_a_role_that_does_not_start_is_told(tmp_path: Path):
    cfg = load_recipe(ROOT / "configs" / "recipes" / "eight_gpus.yaml", ["algorithm.kl.coef=0"])
    (warning,) = warn_recipe_on(cfg, load(base(), tmp_path))
    assert "reference" in warning.what
