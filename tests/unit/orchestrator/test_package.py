"""What travels with a job: named file by file, whatever ignore rules say; the rest is refused."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.infra import InfraConfig
from configs.load import load_infra, load_recipe
from configs.schema import RunConfig
from configs.validate import active_groups, validate_run
from orchestrator.deploy import package as package_module
from orchestrator.deploy.infra_check import JOB_PACKAGE, Carrier
from orchestrator.deploy.package import Package, make_package

ROOT = Path(__file__).parents[3]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, in which braid is run: a grader package that imports a module beside it, a
    file for an argument, data, and rules that ignore all of them."""
    files = {
        "my_job_graders/__init__.py": "",
        "my_job_graders/brief.py": "from my_job_words import few\ndef brief(rollout, task, at): 0",
        "my_job_words.py": "few = 3\n",
        "rubrics/brief.txt": "12",
        "rows.jsonl": '{"prompt": "a", "answer": "b"}\n',
        "ignored.pyc": "",
        ".gitignore": "*.py\n*.jsonl\nrubrics/\n",
        ".rayignore": "*\n",
    }
    for name, text in files.items():
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(tmp_path / "work"))
    importlib.invalidate_caches()
    return tmp_path / "work"


def recipe(work: Path, **grader: object) -> RunConfig:
    part = {
        "name": "mine",
        "use": "my_job_graders.brief:brief",
        "args": {"at": "rubrics/brief.txt"},
    }
    data: dict[str, Any] = {
        "name": "My_Run",
        "num_steps": 1,
        "model": {"path": "/shared/model"},
        "sources": [
            {"name": "rows", "data": {"jsonl": ["rows.jsonl"]}, "rewards": [{**part, **grader}]}
        ],
        "batch": {"groups_per_step": 1},
    }
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_recipe(path)


@pytest.fixture
def infra() -> InfraConfig:
    return load_infra(ROOT / "k8s" / "infra" / "cpu.yaml")


def unpack(package: Package, folder: Path) -> dict[str, Path]:
    package.write(folder)
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}


def test_recipe_data_modules_and_named_files_travel_and_nothing_else(
    work: Path, infra: InfraConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = make_package(recipe(work), infra)
    files = unpack(made, tmp_path / "job")
    assert sorted(files) == [
        "braid_data/rows.jsonl",
        "my_job_graders/__init__.py",
        "my_job_graders/brief.py",
        "my_job_words.py",
        "recipe.yaml",
        "rubrics/brief.txt",
    ]
    assert made.size == sum(path.stat().st_size for path in files.values())
    assert (made.run, made.run_dir) == ("my-run", "/shared/runs/My_Run")
    monkeypatch.chdir(tmp_path / "job")
    there = load_recipe("recipe.yaml")
    assert there.ray_address == "auto"
    assert there.sources[0].data.jsonl == (str(tmp_path / "job/braid_data/rows.jsonl"),)
    assert there.trainer.actors.labels == {"braid-group": "worker"}


def test_ray_packs_all_of_it(
    work: Path, infra: InfraConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the variables that `jobs.connect` sets, Ray's own packing leaves no file out."""
    import zipfile

    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
    made = make_package(recipe(work), infra)
    files = unpack(made, tmp_path / "job")
    target = tmp_path / "packed.zip"
    create_package(
        str(tmp_path / "job"),
        target,
        include_gitignore=False,
        excludes=get_runtime_env_default_excludes(),
    )
    with zipfile.ZipFile(target) as packed:
        assert {n for n in packed.namelist() if not n.endswith("/")} == set(files)


def test_the_hash_is_that_of_all_that_travels(work: Path, infra: InfraConfig):
    before = make_package(recipe(work), infra).hash
    assert make_package(recipe(work), infra).hash == before
    for name, text in {
        "my_job_words.py": "few = 4\n",
        "rubrics/brief.txt": "13",
        "rows.jsonl": '{"prompt": "a", "answer": "c"}\n',
    }.items():
        kept = (work / name).read_text()
        (work / name).write_text(text)
        assert make_package(recipe(work), infra).hash != before, name
        (work / name).write_text(kept)
    assert make_package(recipe(work, weight=2.0), infra).hash != before


@pytest.mark.parametrize("where", ["../outside.txt", "{above}/outside.txt"])
def test_a_named_file_outside_the_folder_is_refused(work: Path, infra: InfraConfig, where: str):
    (work.parent / "outside.txt").write_text("1")
    cfg = recipe(work, args={"at": where.format(above=work.parent)})
    with pytest.raises(ConfigError, match="outside the folder that travels") as refused:
        make_package(cfg, infra)
    (problem,) = refused.value.problems
    assert problem.where == "sources.rows.rewards.mine.args.at" and "/shared" in problem.fix


def test_too_much_is_refused_and_the_largest_named(
    work: Path, infra: InfraConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(package_module, "JOB_PACKAGE", Carrier(max_bytes=1500, text_only=False))
    (work / "my_job_words.py").write_text(f"few = '{'x' * 1300}'\n")
    with pytest.raises(ConfigError, match=r"my_job_words.py: has 1,309 bytes.*takes 1,500"):
        make_package(recipe(work), infra)
    (work / "rows.jsonl").write_text('{"prompt": "a"}\n' * 200)
    with pytest.raises(ConfigError, match="too large to travel"):
        make_package(recipe(work), infra)


def test_two_files_of_one_name_are_refused(work: Path, infra: InfraConfig):
    (work / "braid_data").mkdir()
    (work / "braid_data" / "rows.jsonl").write_text("other")
    cfg = recipe(work, args={"at": "braid_data/rows.jsonl"})
    with pytest.raises(ConfigError, match="would both be braid_data/rows"):
        make_package(cfg, infra)


def test_parquet_travels_with_a_job_and_not_with_a_config_map(work: Path, infra: InfraConfig):
    from orchestrator.deploy.infra_check import CONFIG_MAP, check_recipe_on

    (work / "rows.parquet").write_bytes(b"PAR1\xff")
    cfg = recipe(work)
    data = cfg.sources[0].data.model_copy(update={"jsonl": None, "parquet": ("rows.parquet",)})
    cfg = cfg.model_copy(update={"sources": (cfg.sources[0].model_copy(update={"data": data}),)})
    assert check_recipe_on(cfg, infra, JOB_PACKAGE) == []
    found = {p.where: p.what for p in check_recipe_on(cfg, infra, CONFIG_MAP)}
    assert set(found) == {"sources.rows.data.parquet", "sources.rows.rewards.mine.args.at"}
    assert "where graders and environments are" in found["sources.rows.rewards.mine.args.at"]


RECIPES = sorted(
    str(path.relative_to(ROOT / "configs" / "recipes"))
    for path in (ROOT / "configs" / "recipes").rglob("*.yaml")
    if "judges" not in path.parts and "\ntype:" not in path.read_text()
)
"""Every recipe of a run; those of lessons have a type."""


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_that_comes_with_braid_can_be_submitted(
    name: str, infra: InfraConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is unpacked elsewhere is the whole recipe, its data, anchors and teachers included; the
    models lie on the storage."""
    path = ROOT / "configs" / "recipes" / name
    given = yaml.safe_load(path.read_text())
    tiny = str(ROOT / "configs" / "models" / "tiny")
    made = [f"teachers.{n}.model.path={tiny}" for n in given.get("teachers", {})]
    if given["model"]["path"].startswith("../"):  # some are made before their recipe runs
        made.append(f"model.path={tiny}")
    cfg = load_recipe(path, made)
    labels = dict.fromkeys(tuple(sorted(a.labels.items())) for a in active_groups(cfg).values())
    large = infra.groups[0].model_copy(update={"cpus": 512, "gpus": 512})
    groups = tuple(
        large.model_copy(update={"name": f"group{i}", "labels": dict(own)})
        for i, own in enumerate(labels)
    )
    storage = infra.storage.model_copy(update={"mount": str(ROOT / "configs" / "models")})
    wide = infra.model_copy(update={"groups": groups, "storage": storage})
    files = unpack(make_package(cfg, wide), tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    there = load_recipe("recipe.yaml")
    assert validate_run(there) == []
    data = [s.data for s in there.sources]
    named = [p for d in data for p in (*(d.jsonl or ()), *(d.held_out_file or ()))]
    assert all(Path(path).is_relative_to(tmp_path / "job") for path in named)
    assert {Path(path) for path in named} == {p for n, p in files.items() if "braid_data" in n}
