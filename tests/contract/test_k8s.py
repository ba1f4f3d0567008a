"""The overlays in k8s/ are what `braid render` gives: `python tests/contract/test_k8s.py` rewrites
them. Schemas of KubeRay lie beside the project where it is developed, and nowhere else."""

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from configs.load import load_infra, load_recipe
from orchestrator.deploy.render import Bundle, render, write_bundle

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "kuberay"
OVERLAYS: dict[str, tuple[str, str]] = {
    "cpu": ("quickstart", "cpu"),
    "one-gpu": ("one_gpu", "one-gpu"),
    "node-of-8": ("eight_gpus", "node-of-8"),
    "rdma-64": ("multi_node", "rdma-64"),
    "spot-rollout": ("eight_gpus", "spot-rollout"),
    "kueue": ("eight_gpus", "kueue"),
}
"""Overlay -> recipe, infra file."""
CUSTOM = {"RayJob", "RayCluster", "PodMonitor"}


def rendered(overlay: str, *, kind: str = "job") -> Bundle:
    recipe, infra = OVERLAYS[overlay]
    there = ["model.path=/shared/models/tiny"] if recipe == "quickstart" else []
    cfg = load_recipe(ROOT / "configs" / "recipes" / f"{recipe}.yaml", there)
    where = load_infra(ROOT / "k8s" / "infra" / f"{infra}.yaml")
    return render(cfg, where.model_copy(update={"kind": kind}))


def test_every_infra_file_has_an_overlay():
    files = {path.stem for path in (ROOT / "k8s" / "infra").glob("*.yaml")}
    assert files == {infra for _, infra in OVERLAYS.values()}
    assert {p.name for p in (ROOT / "k8s" / "overlays").iterdir()} == set(OVERLAYS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_what_render_gives(overlay: str, tmp_path: Path):
    write_overlay(overlay, tmp_path)
    kept = ROOT / "k8s" / "overlays" / overlay
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in kept.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_text() == (kept / path.name).read_text(), (
            f"{path.name} differs; run `python tests/contract/test_k8s.py` and look at the diff"
        )


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_the_very_bundle(overlay: str):
    built = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    by_name = {key(d): d for d in yaml.safe_load_all(built.stdout)}
    assert by_name == {key(d): d for d in rendered(overlay).documents}


def key(document: dict[str, object]) -> tuple[str, str]:
    metadata = document["metadata"]
    assert isinstance(metadata, dict)
    return str(document["kind"]), str(metadata["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_core_kinds_fit_kubernetes_schemas(overlay: str):
    found = [d for d in rendered(overlay).documents if d["kind"] not in CUSTOM]
    assert {"ServiceAccount", "ConfigMap"} <= {str(d["kind"]) for d in found}
    for document in found:
        kubernetes_validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_fit_kubernetes_schemas(overlay: str):
    """Each pod template, as a Pod of its own."""
    for document in rendered(overlay).documents:
        if document["kind"] == "RayJob":
            cluster = document["spec"]["rayClusterSpec"]  # type: ignore[index,call-overload]
            groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]  # type: ignore[index,call-overload,misc]
            templates = [group["template"] for group in groups]  # type: ignore[index,call-overload]
            templates += [d for k, d in document["spec"].items() if k == "submitterPodTemplate"]  # type: ignore[union-attr]
            for template in templates:
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **template}  # type: ignore[dict-item]
                kubernetes_validate.validate(pod, "1.31", strict=True)


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's schemas are not beside the project")
@pytest.mark.parametrize("kind", ["job", "cluster"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_kinds_fit_kuberays_schemas(overlay: str, kind: str):
    name = "RayJob" if kind == "job" else "RayCluster"
    schema = json.loads((SCHEMAS / f"{name.lower()}.v1.schema.json").read_text())
    (document,) = [d for d in rendered(overlay, kind=kind).documents if d["kind"] == name]
    jsonschema.Draft202012Validator(schema).validate(document)


def write_overlay(overlay: str, folder: Path) -> None:
    """Write an overlay: the bundle, but for what the base has."""
    bundle = rendered(overlay)
    (account,) = [d for d in bundle.documents if d["kind"] == "ServiceAccount"]
    rest = tuple(d for d in bundle.documents if d is not account)
    write_bundle(Bundle(run=bundle.run, documents=rest), folder)
    path = folder / "kustomization.yaml"
    made = yaml.safe_load(path.read_text())
    namespace = account["metadata"]["namespace"]  # type: ignore[index,call-overload]
    made = {**made, "namespace": namespace, "resources": ["../../base", *made["resources"]]}
    path.write_text(yaml.safe_dump(made, sort_keys=False))


def write_base(folder: Path) -> None:
    """Write what all overlays share."""
    first = rendered("one-gpu")
    (account,) = [d for d in first.documents if d["kind"] == "ServiceAccount"]
    write_bundle(Bundle(run=first.run, documents=(account,)), folder)


def test_the_base_is_what_render_gives(tmp_path: Path):
    write_base(tmp_path)
    kept = ROOT / "k8s" / "base"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        p.name: p.read_text() for p in kept.iterdir()
    }


if __name__ == "__main__":
    write_base(ROOT / "k8s" / "base")
    for each in OVERLAYS:
        shutil.rmtree(ROOT / "k8s" / "overlays" / each, ignore_errors=True)
        write_overlay(each, ROOT / "k8s" / "overlays" / each)
