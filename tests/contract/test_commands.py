"""Every command that README.md and docs/ tell people to run exists, with its options and files."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from configs.load import load_recipe, load_reward_model, load_sft
from orchestrator.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^( *)```\w*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`((?:braid|make) [^`\n]+)`(?!`)")


def commands_in(text: str) -> list[str]:
    """Return the braid and make commands in a page's code blocks."""
    blocks = [m[2].replace("\\\n", " ") for m in _FENCE.finditer(text)]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(braid|make)\b", line)]


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
    return _wrong_make(rest) if program == "make" else _wrong_braid(rest)


def _wrong_make(rest: list[str]) -> str | None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", text, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) \?=", text, re.MULTILINE))
    for word in rest:
        name, assigned, _ = word.partition("=")
        if name not in (variables if assigned else targets):
            return f"the Makefile has no {'variable' if assigned else 'target'} {name}"
    return None


def _wrong_braid(rest: list[str]) -> str | None:
    group: Any = typer.main.get_command(app)
    if not rest or rest[0] not in group.commands:
        return f"braid has no command {rest[:1]}"
    command = group.commands[rest[0]]
    if hasattr(command, "commands"):
        if len(rest) < 2 or rest[1] not in command.commands:
            return f"braid {rest[0]} has no command {rest[1:2]}"
        rest, command = rest[1:], command.commands[rest[1]]
    options = {o for p in command.params for o in p.opts if o.startswith("--")} | {"--help"}
    arguments = [p for p in command.params if not any(o.startswith("--") for o in p.opts)]
    flags = {o for p in command.params if getattr(p, "is_flag", False) for o in p.opts}
    given, overrides, at = [], [], 1
    while at < len(rest):
        word = rest[at]
        if word.startswith("--"):
            if word not in options:
                return f"braid {rest[0]} has no option {word}"
            if word not in flags and word != "--help":
                at += 1
                if word == "--set":
                    overrides.append(rest[at])
        else:
            given.append(word)
        at += 1
    many = any(p.nargs == -1 for p in arguments)
    fits = len(given) >= len(arguments) if many else len(given) == len(arguments)
    if "--help" not in rest and not fits:
        return f"braid {rest[0]} takes {len(arguments)} arguments, not {given}"
    return _wrong_recipe(given, overrides)


def _wrong_recipe(given: list[str], overrides: list[str]) -> str | None:
    recipes = [g for g in given if g.startswith("configs/") and g.endswith(".yaml")]
    for recipe in recipes:
        if not (ROOT / recipe).is_file():
            return f"there is no {recipe}"
        if (ROOT / recipe).parent.name == "recipes":  # below lie graders and judges
            kinds = {"sft": load_sft, "reward_model": load_reward_model}
            kinds.get(Path(recipe).stem, load_recipe)(ROOT / recipe, overrides)
    return None


def test_there_are_commands_to_check():
    found = {c for _, c in found_by(commands_in)}
    assert any(c.startswith("make quickstart") for c in found)
    assert any(c.startswith("make test") for c in found)
    assert any(c.startswith("braid run ") for c in found)


@pytest.mark.parametrize(("page", "command"), found_by(commands_in), ids=lambda value: value)
def test_the_command_exists(page: str, command: str):
    assert wrong_with(command) is None, f"{page}: {command}"


@pytest.mark.parametrize(("page", "command"), found_by(mentions_in), ids=lambda value: value)
def test_the_mentioned_command_has_that_name(page: str, command: str):
    program, name = words(command)[:2]
    if program == "make":
        assert _wrong_make([name]) is None, f"{page}: {command}"
    else:
        group: Any = typer.main.get_command(app)
        assert name in group.commands, f"{page}: {command}"


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "make quickstart SEEDS=2",
        "braid fly",
        "braid run",
        "braid run configs/recipes/nowhere.yaml",
        "braid run configs/recipes/one_gpu.yaml --resumed auto",
        "braid export runs/a 3",
        "braid import",
        "braid import nemo a.yaml",
        "braid import verl",
        "braid import verl a.parquet --validation b.parquet",
    ],
)
def test_a_wrong_command_would_be_found(command: str):
    assert wrong_with(command) is not None


def test_commands_are_found_in_blocks_and_in_text():
    page = "Do `make test`.\n\n```bash\n$ braid plan \\\n  x.yaml\nls\n```\n\n`braid run x`\n"
    assert commands_in(page) == ["braid plan    x.yaml"]
    assert mentions_in(page) == ["make test", "braid run x"]
