"""What our code never does: run data as code, or take more trust than was given."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "actors",
    "benchmarks",
    "configs",
    "environments",
    "mixing",
    "orchestrator",
    "rewards",
    "rollouts",
    "trainer",
)
MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "input"}
CALLS |= {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "pty.spawn"}
ALLOWED = {
    ("rewards/sandbox/inside/harness.py", "exec"),  # model-written code, inside the sandbox
    ("rewards/sandbox/inside/harness.py", "compile"),
    ("trainer/tiny_code.py", "exec"),  # lines that the file itself made, for a model's lessons
}
"""(file, what): why it may."""


def test_every_actor_guards_what_it_writes():
    """An actor's last traceback goes to Ray's logs, and must hold no secret."""
    found: dict[str, bool] = {}
    for path in (ROOT / "actors").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            # one that has a base is guarded by it, unless that is Generic, which says types alone
            own = isinstance(node, ast.ClassDef) and all(
                isinstance(b, ast.Subscript) and dotted(b.value) == "Generic" for b in node.bases
            )
            if own and node.name.endswith("Actor"):
                made = next(f for f in node.body if getattr(f, "name", "") == "__init__")
                calls = {dotted(c.func) for c in ast.walk(made) if isinstance(c, ast.Call)}
                found[node.name] = "guard_output" in calls
    assert len(found) >= 8 and {name for name, guarded in found.items() if not guarded} == set()


def dotted(node: ast.expr) -> str:
    """Return `a.b.c`, or an empty text where it is no plain name."""
    if isinstance(node, ast.Attribute):
        above = dotted(node.value)
        return f"{above}.{node.attr}" if above else ""
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(source: str) -> Iterator[str]:
    """Yield every unsafe thing that a source text does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield str(node.module)
        elif isinstance(node, ast.Call):
            yield from _unsafe_call(node)


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    name = dotted(node.func)
    given = {k.arg: k.value for k in node.keywords}
    if name in CALLS:
        yield name
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
        loads = name.startswith("AutoModel")
        if loads and not _is(given.get("use_safetensors"), True):
            yield "from_pretrained without use_safetensors=True"
    for option in ("shell", "allow_pickle", "trust_remote_code", "verify_ssl"):
        value = given.get(option)
        wrong = option != "verify_ssl"
        if _is(value, wrong):
            yield f"{option}={wrong}"
    if _is(given.get("allow_redirects"), True):
        yield "allow_redirects=True"


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def sources() -> list[Path]:
    return sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))


def test_no_file_does_anything_unsafe():
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for path in sources()
        for what in unsafe(path.read_text())
    }
    assert len(sources()) > 200
    assert found - ALLOWED == set()


def test_what_is_allowed_is_there():
    for name, what in ALLOWED:
        assert what in set(unsafe((ROOT / name).read_text())), f"remove {name}, {what}"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval('1')",
        "yaml.load(text, yaml.Loader)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModelForCausalLM.from_pretrained(path)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(command, shell=True)",
        "np.load(path, allow_pickle=True)",
        "os.system('ls')",
        "session.get(url, allow_redirects=True)",
    ],
)
def test_an_unsafe_line_would_be_found(line: str):
    assert list(unsafe(line)) != []


def test_safe_lines_are_not():
    safe = "torch.load(p, weights_only=True)\nre.compile('x')\nmodel.eval()\nyaml.safe_load(t)\n"
    assert list(unsafe(safe)) == []
