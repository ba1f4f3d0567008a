"""Recipe and infra file to manifests: what comes out."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_infra, load_recipe
from configs.schema import RunConfig
from configs.training import NvmeConfig
from orchestrator.deploy.infra_check import check_recipe_on, place_roles
from orchestrator.deploy.render import render, write_bundle
from orchestrator.planning.plan import plan_bundles
from tests.unit.orchestrator.infras import ROOT, base, groups, load, more, put


@pytest.fixture(scope="module")
def recipe() -> RunConfig:
    return load_recipe(ROOT / "configs" / "recipes" / "eight_gpus.yaml")


def test_small_data_travels_with_the_recipe_and_is_found_there(tmp_path: Path):
    cfg = load_recipe(
        ROOT / "configs" / "recipes" / "few_examples.yaml", ["model.path=/shared/models/tiny"]
    )
    infra = load_infra(ROOT / "k8s" / "infra" / "cpu.yaml")
    bundle = render(cfg, infra)
    (made,) = [d for d in bundle.documents if d["kind"] == "ConfigMap"]
    data: Any = made["data"]
    assert made["immutable"] is True
    names = set(data) - {"recipe.yaml"}
    assert names and all(f"/etc/braid/{name}" in data["recipe.yaml"] for name in names)
    assert str(ROOT) not in data["recipe.yaml"]
    moved = tmp_path / "recipe.yaml"
    moved.write_text(data["recipe.yaml"])
    there = load_recipe(moved)
    assert there.ray_address == "auto" and there.num_steps == cfg.num_steps


def test_other_content_is_another_object(recipe: RunConfig):
    infra = load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml")
    names = set()
    for seed in (1, 2):
        bundle = render(recipe.model_copy(update={"seed": seed}), infra)
        names |= {d["metadata"]["name"] for d in bundle.documents if d["kind"] == "ConfigMap"}  # type: ignore[index,call-overload]
    assert len(names) == 2


def test_secrets_are_references_and_stay_out_of_isolated_groups(recipe: RunConfig):
    bundle = render(recipe, load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml"))
    (job,) = [d for d in bundle.documents if d["kind"] == "RayJob"]
    cluster: Any = job["spec"]["rayClusterSpec"]  # type: ignore[index,call-overload]
    by_name = {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
    for name, has in (("gpu", True), ("reward", False)):
        env = by_name[name]["template"]["spec"]["containers"][0]["env"]
        tokens = [e for e in env if e["name"] == "HF_TOKEN"]
        assert bool(tokens) is has
        assert all("value" not in e for e in tokens)
    policies: Any = [d for d in bundle.documents if d["kind"] == "NetworkPolicy"]
    specs = {p["metadata"]["name"]: p["spec"] for p in policies}
    own = {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "eight-gpus"}}}
    everybody = specs.pop("eight-gpus")
    assert everybody["podSelector"] == own["podSelector"]
    metrics = {"ports": [{"protocol": "TCP", "port": 8080}]}
    assert everybody["ingress"] == [{"from": [own]}, metrics]
    head = specs.pop("eight-gpus-head")
    assert head["podSelector"]["matchLabels"]["braid.dev/group"] == "head"
    assert head["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8265}]}]
    (spec,) = specs.values()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["podSelector"]["matchLabels"]["braid.dev/group"] == "reward"


INFRA = sorted(p.stem for p in (ROOT / "k8s" / "infra").glob("*.yaml"))
RECIPES = {
    "cpu": ("quickstart", ["model.path=/shared/models/tiny"]),
    "one-gpu": ("one_gpu", []),
    "rdma-64": ("multi_node", []),
}
"""Infra file -> a recipe for it, where it is not that of eight GPUs."""


def rendered(name: str) -> dict[str, Any]:
    """Return the RayJob of an infra file with its recipe."""
    file, overrides = RECIPES.get(name, ("eight_gpus", []))
    cfg = load_recipe(ROOT / "configs" / "recipes" / f"{file}.yaml", overrides)
    documents = render(cfg, load_infra(ROOT / "k8s" / "infra" / f"{name}.yaml")).documents
    (job,) = [d for d in documents if d["kind"] == "RayJob"]
    spec: Any = job["spec"]
    return spec


@pytest.mark.parametrize("name", INFRA)
def test_every_container_is_closed(name: str):
    job = rendered(name)
    cluster = job["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    templates = [g["template"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert ("submitterPodTemplate" in job) is (job["submissionMode"] == "K8sJobMode")
    templates += [job[t] for t in ("submitterPodTemplate",) if t in job]
    options = cluster.get("autoscalerOptions")
    for template in templates:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert len(volumes) == len(pod["volumes"])
        kinds = {kind for v in pod["volumes"] for kind in v if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "projected", "persistentVolumeClaim"}
        for container in (*pod["containers"], *([options] if options else [])):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"]["drop"] == ["ALL"]
            assert not any(key.endswith("Probe") for key in container), "the operator's"
            assert name == "rdma-64" or "add" not in security["capabilities"], "restricted"
        (container,) = pod["containers"]
        paths = {m["mountPath"]: volumes[m["name"]] for m in container["volumeMounts"]}
        env = {e["name"]: e.get("value") for e in container["env"]}
        assert all("emptyDir" in paths[p] for p in ("/tmp", env["HOME"]))


def test_the_autoscaler_alone_may_talk_to_kubernetes():
    cluster = rendered("spot-rollout")["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    mounts = {m["name"]: m["mountPath"] for m in cluster["autoscalerOptions"]["volumeMounts"]}
    where = "/var/run/secrets/kubernetes.io/serviceaccount"
    (token,) = [name for name, path in mounts.items() if path == where]
    head = cluster["headGroupSpec"]["template"]["spec"]
    volumes = {v["name"]: v for v in head["volumes"]}
    assert set(mounts) <= set(volumes)
    assert volumes[token]["projected"]["sources"][0]["serviceAccountToken"]["path"] == "token"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert where not in {m["mountPath"] for m in container["volumeMounts"]}
    others = [g["template"]["spec"]["volumes"] for g in cluster["workerGroupSpecs"]]
    assert not any(v["name"] == token for volumes in others for v in volumes)
    assert "autoscalerOptions" not in rendered("node-of-8")["rayClusterSpec"]


def test_a_recipe_that_is_wrong_anywhere_is_refused_here(recipe: RunConfig, tmp_path: Path):
    sampling = recipe.sources[0].sampling.model_copy(update={"max_tokens": 10**6})
    source = recipe.sources[0].model_copy(update={"sampling": sampling})
    wrong = recipe.model_copy(update={"sources": (source, *recipe.sources[1:])})
    data = base()
    put("storage.mount", "shared")(data)
    with pytest.raises(ConfigError) as caught:
        render(wrong, load(data, tmp_path))
    places = [p.where for p in caught.value.problems]
    assert "storage.mount" in places and any("sampling.max_tokens" in p for p in places)


def test_a_disk_to_offload_to_must_be_writable_in_the_pod(recipe: RunConfig):
    infra = load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml")
    for path, refused in (("/local_nvme", True), ("/tmp/nvme", False), ("/shared/nvme", False)):
        nvme = NvmeConfig(path=path)
        trainer = recipe.trainer.model_copy(update={"nvme": nvme})
        found = check_recipe_on(recipe.model_copy(update={"trainer": trainer}), infra)
        assert [p.where for p in found] == ["trainer.nvme.path"] * refused


def test_kueue_gets_the_fields_it_knows_and_never_both(recipe: RunConfig):
    specs: dict[str, Any] = {}
    for name in ("kueue", "node-of-8"):
        bundle = render(recipe, load_infra(ROOT / "k8s" / "infra" / f"{name}.yaml"))
        (job,) = [d for d in bundle.documents if d["kind"] == "RayJob"]
        specs[name] = job
    assert specs["kueue"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert specs["kueue"]["spec"]["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in specs["kueue"]["spec"]
    assert "shutdownAfterJobFinishes" not in specs["node-of-8"]["spec"]


@pytest.mark.parametrize(
    ("scheduler", "wanted"),
    [
        ("kueue", {"kueue.x-k8s.io/queue-name": "q", "kueue.x-k8s.io/priority-class": "p"}),
        ("volcano", {"volcano.sh/queue-name": "q", "ray.io/priority-class-name": "p"}),
        (
            "yunikorn",
            {
                "ray.io/gang-scheduling-enabled": "true",
                "yunikorn.apache.org/app-id": "eight-gpus",
                "yunikorn.apache.org/queue": "q",
            },
        ),
        ("kai", {"kai.scheduler/queue": "q"}),
    ],
)
@pytest.mark.parametrize("kind", ["job", "cluster"])
def test_a_queue_finds_its_labels(
    scheduler: str, wanted: dict[str, str], kind: str, recipe: RunConfig, tmp_path: Path
):
    queue = {"scheduler": scheduler, "name": "q"}
    if any("priority" in key for key in wanted):
        queue["priority_class"] = "p"
    documents = render(recipe, load({**base(), "queue": queue, "kind": kind}, tmp_path)).documents
    made = documents[-1]
    metadata: Any = made["metadata"]
    spec: Any = made["spec"]
    assert made["kind"] == {"job": "RayJob", "cluster": "RayCluster"}[kind]
    assert wanted.items() <= metadata["labels"].items()
    if kind == "job":  # KAI takes no submitter's pod, and gangs do not count it
        assert spec["submissionMode"] == "HTTPMode" and "submitterPodTemplate" not in spec


def test_roles_are_placed_by_label_and_nothing_else_changes(recipe: RunConfig):
    infra = load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml")
    placed = place_roles(recipe, infra)
    assert placed.trainer.actors.labels == {"braid-group": "gpu"}
    assert placed.reward.actors.labels == {"braid-group": "reward"}
    assert len(plan_bundles(placed)) == len(plan_bundles(recipe))
    assert recipe.trainer.actors.labels == {}


@pytest.mark.parametrize("seed", range(30))
def test_room_is_found_exactly_where_there_is_some(seed: int, tmp_path: Path):
    """Engines of g GPUs on n pods of k GPUs: they fit if floor(k / g) * n covers them."""
    draw = random.Random(seed)
    each, pods, per_pod = draw.choice([1, 2, 3]), draw.randint(1, 4), draw.choice([1, 2, 4, 8])
    data = copy.deepcopy(base())
    data["groups"] = [
        {"name": "rollout", "roles": ["rollout"], "cpus": 64, "memory": "64Gi"},
        {"name": "rest", "cpus": 64, "memory": "64Gi", "gpus": 8},
    ]
    groups(data)[0] |= {"gpus": per_pod, "replicas": pods}
    room = per_pod // each * pods
    for count in {max(1, room), room + 1}:
        cfg = load_recipe(
            ROOT / "configs" / "recipes" / "eight_gpus.yaml",
            [
                f"rollout.actors={{count: {count}, cpus: 1, gpus: {each}}}",
                f"rollout.tensor_parallel={each}",
            ],
        )
        found = [p for p in check_recipe_on(cfg, load(data, tmp_path)) if "rollout" in p.where]
        assert bool(found) is (count > room)


def test_roles_that_no_group_names_go_where_no_role_is_named(recipe: RunConfig, tmp_path: Path):
    data = base()
    groups(data)[1]["roles"] = []
    more(gpus=1)(data)
    placed = place_roles(recipe, load(data, tmp_path))
    assert placed.reward.actors.labels == {"braid-group": "in(reward,more)"}
    assert placed.trainer.actors.labels == {"braid-group": "gpu"}


def test_a_bundle_in_a_folder_has_a_kustomization(recipe: RunConfig, tmp_path: Path):
    bundle = render(recipe, load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml"))
    paths = write_bundle(bundle, tmp_path / "out")
    listed = yaml.safe_load((tmp_path / "out" / "kustomization.yaml").read_text())["resources"]
    assert listed == [p.name for p in paths[:-1]]
    assert list(yaml.safe_load_all(bundle.to_yaml())) == [
        yaml.safe_load(p.read_text()) for p in paths[:-1]
    ]


def test_what_a_glob_stands_for_and_anchors_travel(tmp_path: Path):
    data = tmp_path / "my data"
    data.mkdir()
    for name in ("a 1.jsonl", "recipe.yaml"):
        (data / name).write_text('{"prompt": "1+1", "answer": "2"}\n')
    anchors = tmp_path / "anchors.jsonl"
    anchors.write_text('{"prompt": "a", "sample": "b", "label": 1}\n')
    endpoint = "{base_url: 'http://judge', private: true, model: m}"
    criteria = "[{name: one, criterion: It is one word., points: 1}]"
    grader = f"{{type: rubric, model: j, criteria: {criteria}}}"
    wanted = f"{{part: spelling/rubric, anchors: '{anchors}', min_kappa: 0.4}}"
    cfg = load_recipe(
        ROOT / "configs" / "recipes" / "few_examples.yaml",
        [
            "model.path=/shared/models/tiny",
            f"sources.0.data.jsonl={data}/*",
            f"sources.0.rewards=[{{name: rubric, grader: {grader}}}]",
            f"judges.j={{endpoint: {endpoint}, calibration: {wanted}}}",
        ],
    )
    bundle = render(cfg, load_infra(ROOT / "k8s" / "infra" / "cpu.yaml"))
    (made,) = [d for d in bundle.documents if d["kind"] == "ConfigMap"]
    travelled: Any = made["data"]
    there: Any = yaml.safe_load(travelled["recipe.yaml"])
    paths = there["sources"][0]["data"]["jsonl"]
    assert paths == ["/etc/braid/a_1.jsonl", "/etc/braid/_recipe.yaml"]
    paths.append(there["judges"]["j"]["calibration"]["anchors"])
    assert all(path.removeprefix("/etc/braid/") in travelled for path in paths)
    assert str(tmp_path) not in travelled["recipe.yaml"]


def test_data_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    cfg = load_recipe(
        ROOT / "configs" / "recipes" / "few_examples.yaml",
        ["model.path=/shared/models/tiny", f"sources.0.data.jsonl={tmp_path}/a.jsonl"],
    )
    with pytest.raises(ConfigError, match="UTF-8"):
        render(cfg, load_infra(ROOT / "k8s" / "infra" / "cpu.yaml"))


def test_a_folder_that_cannot_be_written_is_named(recipe: RunConfig, tmp_path: Path):
    bundle = render(recipe, load_infra(ROOT / "k8s" / "infra" / "node-of-8.yaml"))
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ConfigError, match=r"--out .*taken: cannot be written"):
        write_bundle(bundle, tmp_path / "taken")


def test_prometheus_scrapes_the_port_that_the_operator_opens(recipe: RunConfig, tmp_path: Path):
    infra = load(base(), tmp_path)
    assert infra.monitor and any(g.isolated for g in infra.groups)
    by_kind = {str(d["kind"]): d for d in render(recipe, infra).documents}
    spec: Any = by_kind["PodMonitor"]["spec"]
    assert spec["podMetricsEndpoints"] == [{"port": "metrics"}]
    cluster: Any = by_kind["RayJob"]["spec"]
    cluster = cluster["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in pods:  # KubeRay opens `metrics`, 8080, in a container that names no ports itself
        assert "metrics-export-port" not in pod["rayStartParams"]
        assert all("ports" not in c for c in pod["template"]["spec"]["containers"])
    left_out: Any = spec["selector"]["matchExpressions"][0]
    names = {p["template"]["metadata"]["labels"]["braid.dev/group"] for p in pods}
    assert set(left_out["values"]) == {g.name for g in infra.groups if g.isolated} < names


def test_a_monitored_run_exports_its_metrics(recipe: RunConfig, tmp_path: Path):
    for monitor in (True, False):
        infra = load({**base(), "monitor": monitor}, tmp_path)
        documents = render(recipe, infra).documents
        (config_map,) = [d for d in documents if d["kind"] == "ConfigMap"]
        data: Any = config_map["data"]
        travels = yaml.safe_load(data["recipe.yaml"])
        assert travels.get("logging", {}).get("prometheus", False) is monitor
        assert ("PodMonitor" in {d["kind"] for d in documents}) is monitor
