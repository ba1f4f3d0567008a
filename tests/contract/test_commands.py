"""Every command that README.md and docs/ tell people to run works: cheap ones are run as they
stand, the others go through the real parser, and some other test runs that command."""

import json
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import typer

from configs.load import load_infra, load_recipe, load_reward_model, load_sft, save_config
from mixing.ledger.events import Attempt, Dispatched, DispatchedGroup, to_row
from orchestrator import cli
from orchestrator.records.files import append_line

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`((?:braid|make) [^`\n]+)`(?!`)")
_SHELLS = ("bash", "sh", "console", "")
LOADERS = {"sft": load_sft, "reward-model": load_reward_model}
"""Command whose recipes are of another kind than a run's -> what reads them."""
OTHER_PROGRAMS = {"docker", "kubectl", "helm", "git", "cd"}
"""Programs of others, whose commands no test here can run."""


def commands_in(text: str) -> list[str]:
    """Return the commands in a page's blocks of shell; a block without a language only where a
    line begins with a program of ours."""
    found: list[str] = []
    for _, language, block in (m.groups() for m in _FENCE.finditer(text)):
        if language in _SHELLS:
            lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
            lines = [line.removeprefix("$ ") for line in lines if line and line[0] != "#"]
            ours = [line for line in lines if re.match(r"(braid|make|python) ?", line)]
            found += lines if language else ours
    return found


def mentions_in(text: str) -> list[str]:
    """Return the braid and make commands written as code within a page's sentences."""
    return _INLINE.findall(_FENCE.sub("", text))


def found_by(find: Callable[[str], list[str]]) -> list[tuple[str, str]]:
    """Return (page, command) of all pages."""
    return sorted({(p.relative_to(ROOT).as_posix(), c) for p in PAGES for c in find(p.read_text())})


def words(command: str) -> list[str]:
    """Split as a shell does; comments and what follows a pipe or `&&` left out."""
    parts = shlex.split(command, comments=True)
    ends = [i for i, p in enumerate(parts) if p in ("|", "&&", ";", ">", "&", "||")]
    return parts[: min(ends, default=len(parts))]


def wrong_with(command: str) -> str | None:
    """Return why a command cannot be run as written, or None."""
    program, *rest = words(command)
    if program in OTHER_PROGRAMS:
        return None
    check = {"make": _wrong_make, "braid": _wrong_braid, "python": _wrong_python}.get(program)
    return f"nobody knows {program}" if check is None else check(rest)


def _wrong_make(rest: list[str]) -> str | None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", text, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) \?=", text, re.MULTILINE))
    for word in rest:
        name, assigned, _ = word.partition("=")
        if name not in (variables if assigned else targets):
            return f"the Makefile has no {'variable' if assigned else 'target'} {name}"
    return None


def _wrong_python(rest: list[str]) -> str | None:
    name = rest[1].replace(".", "/") + ".py" if rest[:1] == ["-m"] else (rest or [""])[0]
    if not (ROOT / name).is_file():
        return f"there is no {name}"
    options = [w.partition("=")[0] for w in rest if w.startswith("--")]
    unknown = [o for o in options if f'"{o}"' not in (ROOT / name).read_text()]
    return f"{name} has no option {unknown[0]}" if unknown else None


class Unparsed(Exception):
    """The command line does not take these words."""


@cache
def _app() -> Any:
    return typer.main.get_command(cli.app)


def parse(rest: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command's name and what it is given, as the command line itself reads it."""
    command, names, rest = _app(), [], list(rest)
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            raise Unparsed(f"braid {' '.join(names)} has no command {rest[:1]}")
        names.append(rest.pop(0))
        command = command.commands[names[-1]]
    if "--help" in rest:
        return " ".join(names), {}
    try:
        return " ".join(names), command.make_context(names[-1], rest).params
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own, of a click of its own
            raise
        raise Unparsed(error.format_message()) from error


def _wrong_braid(rest: list[str]) -> str | None:
    try:
        name, given = parse(rest)
    except Unparsed as error:
        return str(error)
    paths = [str(v) for value in given.values() for v in _flat(value)]
    inside = [p for p in paths if re.match(r"(configs|k8s|benchmarks|docs|tests)/", p)]
    if gone := [p for p in inside if not (ROOT / p).exists()]:
        return f"there is no {', '.join(gone)}"
    for path in inside:
        if path.startswith("configs/recipes/") and path.count("/") == 2:
            sets = given.get("overrides") if name != "grade" or given.get("source") else None
            LOADERS.get(name, load_recipe)(ROOT / path, list(sets or ()))
        elif path.startswith("k8s/infra/"):
            load_infra(ROOT / path)
    return None


def _flat(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


COMMANDS = found_by(commands_in)


def test_there_are_commands_to_check():
    found = {c for _, c in COMMANDS}
    for start in ("make quickstart", "make test", "braid run ", "braid plan ", "python bench"):
        assert any(c.startswith(start) for c in found), start


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: value)
def test_the_command_exists(page: str, command: str):
    assert wrong_with(command) is None, f"{page}: {command}"


@pytest.mark.parametrize(("page", "command"), found_by(mentions_in), ids=lambda value: value)
def test_the_mentioned_command_has_that_name(page: str, command: str):
    program, name, *_ = words(command)
    if program == "make":
        assert _wrong_make([name]) is None, f"{page}: {command}"
    else:
        assert name in _app().commands, f"{page}: {command}"


# What is run here, as it stands.

LIGHT = {
    "plan",
    "ledger",
    "mix",
    "render",
    "import verl",
    "import open-instruct",
    "doctor",
    "grade",
}
"""Commands that take a second or two and need no engine."""


def is_light(command: str) -> bool:
    program, *rest = words(command)
    if program != "braid":
        return False
    if rest[:1] == ["submit"]:
        return "--dry-run" in rest
    if parse(rest)[0] not in LIGHT:
        return False
    attacks = {"--data", "--source"} & set(rest)  # many gradings, in tests/unit/rewards/test_bench
    return not attacks and "--judges" not in rest  # judges: another machine, or an engine


OTHERWISE = {
    "tiny-model": ("tests/unit/trainer/test_tiny_model.py", "trainer.tiny_model"),
    "watch": ("tests/report/test_live.py", '"watch"'),
    "judge calibrate": ("tests/unit/orchestrator/test_calibration.py", '"calibrate"'),
}
"""Command that its test does not call by name -> that test, and what it calls."""


def elsewhere(name: str) -> list[str]:
    """Return the test files that run this command."""
    if name in OTHERWISE:
        file, call = OTHERWISE[name]
        return [file] if call in (ROOT / file).read_text() else []
    quoted = r"\W+".join(f'"{word}"' for word in name.split())
    run = re.compile(rf"(BRAID|braid\"|_main\(\[|run\(|invoke\(|start\(|command)\W*[^\n]*{quoted}")
    others = [p for p in (ROOT / "tests").rglob("test_*.py") if p != Path(__file__)]
    return [p.name for p in others if run.search(p.read_text().replace("\n", " "))]


def test_every_command_is_run_by_some_test():
    names = {parse(words(c)[1:])[0] for _, c in COMMANDS if words(c)[0] == "braid"}
    assert "run" in names and "tiny-model" in names
    light = {parse(words(c)[1:])[0] for _, c in COMMANDS if is_light(c)}
    assert {name for name in names - light if not elsewhere(name)} == set()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader's: the project's files, a run that was made, and data of their own."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "k8s"):
        (folder / name).symlink_to(ROOT / name)
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    cfg = load_recipe(ROOT / "configs" / "recipes" / "quickstart.yaml")
    save_config(cfg, run / "config.yaml")
    append_line(run / "metrics.jsonl", {"step": 1})
    group = "sums/train/17#e0a0"
    history = (
        Attempt(time=0, attempt=1, step=0, offset=0),
        Dispatched(time=1, step=1, version=0, groups=(DispatchedGroup(group, "sums", 2),)),
    )
    (run / "ledger.jsonl").write_bytes(b"".join(map(to_row, history)))
    row = {
        "prompt": [{"role": "user", "content": "1+1?"}],
        "data_source": "mine",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": 0},
    }
    for name in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / f"{name}.parquet")
    (folder / "mine.jsonl").write_text(json.dumps({"prompt": "1+1?", "answer": "2"}) + "\n")
    return folder


@pytest.mark.parametrize(
    ("page", "command"), [c for c in COMMANDS if is_light(c[1])], ids=lambda value: value
)
def test_the_command_runs(
    page: str,
    command: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(workspace)
    for made in workspace.glob("*.yaml"):  # what `braid import` wrote before
        made.unlink()
    code = cli._main(words(command)[1:])
    shown = capsys.readouterr()
    fine = (0, 1) if parse(words(command)[1:])[0] == "doctor" else (0,)  # 1: not ready, and says so
    assert code in fine, f"{page}: {command}\n{shown.out}{shown.err}"
    assert shown.out + shown.err and "Traceback" not in shown.err


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "make quickstart SEEDS=2",
        "rm -rf /",
        "python benchmarks/nothing.py",
        "python benchmarks/specialists.py --colour",
        "braid fly",
        "braid run",
        "braid run configs/recipes/nowhere.yaml",
        "braid run configs/recipes/one_gpu.yaml --resumed auto",
        "braid run configs/recipes/one_gpu.yaml --resume perhaps",
        "braid export runs/a 3",
        "braid status one two",
        "braid logs -f",
        "braid logs one -x",
        "braid import",
        "braid import nemo a.yaml",
        "braid import verl",
        "braid import verl a.parquet --validation b.parquet",
        "braid render configs/recipes/one_gpu.yaml --infra k8s/infra/nowhere.yaml",
    ],
)
def test_a_wrong_command_would_be_found(command: str):
    assert wrong_with(command) is not None


def test_commands_are_found_in_blocks_and_in_text():
    page = "Do `make test`.\n\n```bash\n$ braid plan \\\n  x.yaml\nls\n```\n\n`braid run x`\n"
    assert commands_in(page) == ["braid plan    x.yaml", "ls"]
    assert mentions_in(page) == ["make test", "braid run x"]
