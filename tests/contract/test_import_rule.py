"""Who may import whom: read from the source, and seen in a bare interpreter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = ("configs", "rollouts", "mixing", "environments", "rewards")
MAY_IMPORT = {
    "configs": set(),
    "rollouts": {"configs"},
    "mixing": {"rollouts", "configs"},
    "environments": {"rollouts", "configs"},
    "rewards": {"rollouts", "configs"},
    "trainer": {"rollouts", "configs"},
    "actors": {"trainer", "environments", "rewards", "rollouts", "configs"},
    "orchestrator": {"actors", "environments", "rewards", "mixing", "rollouts", "configs"},
}
"""Package of ours -> the others of ours that it may import."""

_MODELS = {"vllm", "ray", "deepspeed", "transformers"}
NEVER = {
    **dict.fromkeys(LEAVES, _MODELS | {"torch"}),
    "rollouts": _MODELS,  # torch only where a MicroBatch becomes tensors
    "trainer": {"ray", "vllm"},
    "actors": set[str](),
    "orchestrator": {"vllm", "deepspeed", "transformers", "torch"},
}
"""Package of ours -> libraries that it must not import, not even inside a function."""

HEAVY = ("torch", "vllm", "ray", "transformers", "deepspeed")


def imports_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything imported, at any depth of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def violations(package: str, source: str) -> list[str]:
    """Return what `source`, a module of `package`, imports against the rule."""
    bad: list[str] = []
    for line, name in imports_of(source):
        top = name.split(".")[0]
        ours = top in MAY_IMPORT and top != package and top not in MAY_IMPORT[package]
        if name.startswith("..") or ours or top in NEVER[package]:
            bad.append(f"line {line}: {package} must not import {name}")
    return bad


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_module_imports_against_the_rule(package: str):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = [
        f"{file.relative_to(ROOT)} {bad}"
        for file in files
        for bad in violations(package, file.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("configs", "import rollouts.types"),
        ("mixing", "from rewards import graders"),
        ("trainer", "import ray"),
        ("trainer", "def f():\n    from vllm import LLM"),
        ("orchestrator", "from trainer.model import load"),
        ("rewards", "import importlib\nimportlib.import_module('torch')"),
        ("actors", "import orchestrator.planning.plan as p"),
        ("rollouts", "from ..trainer import x"),
        ("environments", "if True:\n    import mixing"),
    ],
)
def test_the_walk_sees_a_forbidden_edge(package: str, source: str):
    assert len(violations(package, source)) == 1


def test_every_package_of_the_project_is_under_the_rule():
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert packages == set(MAY_IMPORT)


def modules(package: str) -> list[str]:
    """Return the dotted names of a package's modules."""
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    return [n.removesuffix(".__init__") for n in names if not n.endswith("__main__")]


LIGHT = [m for leaf in LEAVES for m in modules(leaf)]
LIGHT += [f"orchestrator.{name}" for name in ("cli", "calibration", "sandboxing")]
LIGHT += [f"orchestrator.planning.{name}" for name in ("plan", "table")]
LIGHT += [f"orchestrator.records.{n}" for n in ("run_dir", "checkpoints", "display", "hashes")]
LIGHT += [f"orchestrator.commands.{n}" for n in ("judge", "ledger", "baseline_view")]
LIGHT += ["orchestrator.doctor.diagnose", "orchestrator.records.metrics"]


def loaded_by(statements: str) -> list[str]:
    """Run statements in a bare interpreter; return which heavy libraries they loaded."""
    code = f"import sys\n{statements}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_leaves_and_the_plan_load_nothing_heavy():
    assert loaded_by("\n".join(f"import {m}" for m in LIGHT)) == []


def test_making_a_plan_loads_nothing_heavy():
    assert (
        loaded_by(
            "from pathlib import Path\n"
            "from configs.load import load_any\n"
            "from configs.schema import RunConfig\n"
            "from orchestrator.planning.plan import make_plan\n"
            "from orchestrator.sft.plan import plan_sft\n"
            "for r in Path('configs/recipes').glob('*.yaml'):\n"
            "    cfg = load_any(r)\n"
            "    make_plan(cfg) if isinstance(cfg, RunConfig) else plan_sft(cfg)"
        )
        == []
    )


def test_the_bare_interpreter_would_show_a_heavy_import():
    assert loaded_by("import ray") == ["ray"]


def test_the_driver_loads_ray_alone():
    assert loaded_by("import orchestrator.run") == ["ray"]
    assert loaded_by("import orchestrator.sft.run, orchestrator.commands.sample") == ["ray"]
