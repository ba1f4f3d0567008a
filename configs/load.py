"""Recipes from YAML and `--set`, with every mistake reported at once in plain words."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails, to_json

from configs.data_files import find_files
from configs.errors import ConfigError, Problem
from configs.graders.shorthand import write_out
from configs.graders.union import GRADER, GraderConfig
from configs.infra import InfraConfig
from configs.judges import Judges, JudgesFile
from configs.messages import explain
from configs.redact import hide_variable
from configs.schema import RunConfig, dump
from configs.sft import AnyRecipe, RewardModelRecipe, SftConfig
from configs.validate_judges import check_judges_file
from configs.validate_secrets import check_secrets
from configs.yaml_text import Document, KeyPath, read_document, write_document

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply `a.b=c` overrides, and check every field.

    An item of a list is named by its `name` or its index: `sources.arith.weight=2`. The paths
    `model.path`, `reference.path`, those of judges, reward models and teachers, and those of each
    `data` are taken relative to the current directory or, where they do not exist there, to the
    recipe's folder, and become absolute; one found in neither place is left as it is, which makes
    a `model.path` or `hub` a hub name.

    Raises:
        ConfigError: all problems of the file and the overrides.
    """
    document, set_by = _open(Path(path), overrides)
    data = _of_kind(document, "run", path)
    folder = Path(path).resolve().parent
    _resolve_paths(data, folder)
    document.problems.extend(_inline_graders(data, folder))
    cfg = _validated(document, set_by, RunConfig)
    _hide_keys(cfg.judges)
    return _without_secrets(cfg)


def load_sft(path: Path | str, overrides: Sequence[str] = ()) -> SftConfig:
    """Read a recipe of supervised fine-tuning, as `load_recipe` reads a run's.

    Raises:
        ConfigError: all problems of the file and the overrides.
    """
    return _load_lessons(path, overrides, "sft", SftConfig)


def load_reward_model(path: Path | str, overrides: Sequence[str] = ()) -> RewardModelRecipe:
    """Read a recipe of a reward model's training, as `load_recipe` reads a run's.

    Raises:
        ConfigError: all problems of the file and the overrides.
    """
    return _load_lessons(path, overrides, "reward_model", RewardModelRecipe)


def _load_lessons(path: Path | str, overrides: Sequence[str], kind: str, root: type[M]) -> M:
    document, set_by = _open(Path(path), overrides)
    data = _of_kind(document, kind, path)
    keys = ("jsonl", "parquet", "held_out_file")
    holders = [(data.get("model"), "path"), *((data.get("data"), key) for key in keys)]
    _resolve_held(holders, Path(path).resolve().parent)
    return _without_secrets(_validated(document, set_by, root))


def load_any(path: Path | str) -> AnyRecipe:
    """Read the recipe that a run directory was made by, whichever kind it is.

    Raises:
        ConfigError: all problems of the file.
    """
    kind = _kind(_open(Path(path), ())[0])
    if kind == "sft":
        return load_sft(path)
    return load_reward_model(path) if kind == "reward_model" else load_recipe(path)


_COMMANDS = {"run": "braid run", "sft": "braid sft", "reward_model": "braid reward-model"}
"""Kind of recipe -> the command that takes it."""


def _kind(document: Document) -> str:
    kind = _below(document.data, "type")
    return kind if isinstance(kind, str) else "run"


def _of_kind(document: Document, wanted: str, path: Path | str) -> dict[str, JsonValue]:
    """Return the document's data; ConfigError if it is another command's recipe."""
    kind = _kind(document)
    if kind != wanted and kind in _COMMANDS:
        what = f"is a recipe for `{_COMMANDS[kind]}`"
        fix = f"Give it there; a recipe for `{_COMMANDS[wanted]}` "
        fix += f"says `type: {wanted}`." if wanted != "run" else "has no `type`."
        raise ConfigError(Problem(where=str(path), what=what, fix=fix))
    assert isinstance(document.data, dict)
    return document.data


def _open(path: Path, overrides: Sequence[str]) -> tuple[Document, dict[KeyPath, str]]:
    """Read a recipe's document and put the overrides in; return which of them set what."""
    document = read_document(_read(path), path.name)
    if document.problems and document.data is None:
        raise ConfigError(document.problems)
    if not isinstance(document.data, dict):
        problem = Problem(where=str(path), what="is not a recipe: its top level has no keys")
        raise ConfigError([*document.problems, problem])
    set_by: dict[KeyPath, str] = {}
    for override in overrides:
        problem = _override(document.data, override, set_by)
        if problem is not None:
            document.problems.append(problem)
    return document, set_by


def _without_secrets(cfg: M) -> M:
    """Return the recipe; ConfigError if a secret stands in it."""
    if problems := list(check_secrets(cfg)):
        raise ConfigError(problems)
    return cfg


def _hide_keys(judges: Judges) -> None:
    """Take for secrets what the variables hold that judges' keys are in."""
    for judge in judges.values():
        if judge.endpoint is not None and judge.endpoint.api_key_env is not None:
            hide_variable(judge.endpoint.api_key_env)


def save_config(cfg: BaseModel, path: Path) -> None:
    """Write the resolved config so that `load_any` reads it back equal; atomic."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(write_document(dump(cfg)))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        fix = f"Files in {path.parent}: {', '.join(near)}." if near else "Check the path."
        raise ConfigError(Problem(where=str(path), what="there is no such file", fix=fix)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            Problem(where=str(path), what=f"is not UTF-8 text (byte {error.start})")
        ) from None
    except OSError as error:
        raise ConfigError(
            Problem(where=str(path), what=f"cannot be read: {error.strerror}")
        ) from None


def _validated(document: Document, set_by: dict[KeyPath, str], root: type[M]) -> M:
    """Check plain data against the schema, strictly: text is no number, 5.0 no integer."""
    problems = list(document.problems)
    try:
        cfg = root.model_validate_json(to_json(document.data), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ConfigError([*problems, *_explained(details, document, set_by, root)]) from None
    if problems:
        raise ConfigError(problems)
    return cfg


def _explained(
    details: Sequence[ErrorDetails], document: Document, set_by: dict[KeyPath, str], root: object
) -> list[Problem]:
    return [
        explain(detail, document=document, set_by=set_by, root=root)
        for detail in details
        if not _follows(detail, details)
    ]


def _follows(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Whether pydantic reports a list as too short only because an item in it is wrong."""
    at = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(d["loc"]) > len(at) and d["loc"][: len(at)] == at for d in details
    )


def _override(
    data: dict[str, JsonValue], override: str, set_by: dict[KeyPath, str]
) -> Problem | None:
    """Put one `a.b=c` into the data; return what is wrong with it."""
    where = f"--set {override}"
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        what = "names no field" if equals else "has no `=`"
        return Problem(where=where, what=what, fix="Write it as a.b=value.")
    given = read_document(text, where)
    if given.data is None and given.problems:
        return Problem(where=where, what=f"the value is not YAML: {text!r}", fix="Quote it.")
    if given.problems:
        first = given.problems[0]
        return Problem(where=where, what=first.what, fix=first.fix)
    value = given.data
    at: JsonValue = data
    path: list[str | int] = []
    while parts:
        if isinstance(at, list):
            index, used = _item(at, parts)
            if index is None:
                return _no_item(where, path, parts[0], at)
            parts = parts[used:]
            path.append(index)
            if not parts:
                at[index] = value
                break
            at = at[index]
        elif isinstance(at, dict):
            name, parts = parts[0], parts[1:]
            path.append(name)
            if not parts:
                at[name] = value
                break
            if at.get(name) is None:
                at[name] = {}
            at = at[name]
        else:
            shown = ".".join(map(str, path))
            return Problem(where=where, what=f"`{shown}` is a single value and has no keys below")
    set_by[tuple(path)] = where
    return None


def _item(items: list[JsonValue], parts: Sequence[str]) -> tuple[int | None, int]:
    """Find a list's item by name (which may contain dots) or index; and how many parts it took."""
    for used in range(len(parts), 0, -1):
        name = ".".join(parts[:used])
        for i, item in enumerate(items):
            if isinstance(item, dict) and item.get("name") == name:
                return i, used
    index = parts[0]
    if index.isdecimal() and int(index) < len(items):
        return int(index), 1
    return None, 0


def _no_item(
    where: str, path: Sequence[str | int], key: str, items: Sequence[JsonValue]
) -> Problem:
    names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
    there = f"they are {', '.join(names)}" if names else f"it has {len(items)} items"
    shown = ".".join(map(str, path))
    return Problem(where=where, what=f"`{shown}` has no item `{key}`; {there}")


def _resolve_paths(data: dict[str, JsonValue], folder: Path) -> None:
    """Make the recipe's paths absolute, in place, where they exist."""
    holders: list[tuple[JsonValue, str]] = [
        (data.get("model"), "path"),
        (data.get("reference"), "path"),
        (data.get("critic"), "path"),
    ]
    for source in _mappings(data.get("sources")):
        keys = ("jsonl", "parquet", "hub", "held_out_file")
        holders += [(source.get("data"), key) for key in keys]
    holders += _asked_paths(data)
    _resolve_held(holders, folder)


def _resolve_held(holders: Sequence[tuple[JsonValue, str]], folder: Path) -> None:
    """Make absolute what each mapping has under its key: a path, or a list of them."""
    for holder, key in holders:
        given = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and isinstance(given, str):
            holder[key] = _resolved(given, folder)
        elif isinstance(holder, dict) and isinstance(given, list):
            holder[key] = [_resolved(g, folder) if isinstance(g, str) else g for g in given]


def _asked_paths(data: JsonValue) -> list[tuple[JsonValue, str]]:
    """Return where judges, reward models and teachers have paths."""
    holders: list[tuple[JsonValue, str]] = []
    judges = _below(data, "judges")
    for judge in judges.values() if isinstance(judges, dict) else ():
        holders.append((_below(_below(judge, "engines"), "model"), "path"))
        holders.append((_below(judge, "calibration"), "anchors"))
    for section in ("reward_models", "teachers"):
        models = _below(data, section)
        for model in models.values() if isinstance(models, dict) else ():
            holders.append((_below(model, "model"), "path"))
    return holders


def _below(data: JsonValue, key: str) -> JsonValue:
    return data.get(key) if isinstance(data, dict) else None


def _mappings(items: JsonValue) -> list[dict[str, JsonValue]]:
    return [i for i in items if isinstance(i, dict)] if isinstance(items, list) else []


def _inline_graders(data: dict[str, JsonValue], folder: Path) -> list[Problem]:
    """Put the content of grader files in place of their paths, and write out what is written
    short; return what is wrong with them."""
    problems: list[Problem] = []
    for source in _mappings(data.get("sources")):
        for holder in _mappings([*_mappings(source.get("rewards")), source.get("gold")]):
            given = holder.get("grader")
            if isinstance(given, str):
                try:
                    grader = load_grader(_resolved(given, folder))
                except ConfigError as error:
                    at = _grader_path(source, holder)
                    problems += [replace(p, where=f"{at}: {p.where}") for p in error.problems]
                    holder["grader"] = {"type": "function", "use": "exact"}  # not looked at again
                else:
                    holder["grader"] = GRADER.dump_python(grader, mode="json")
            elif given is not None:
                try:
                    holder["grader"] = write_out(given)
                except ValueError as error:
                    where = _grader_path(source, holder)
                    problems.append(Problem(where=where, what=str(error)))
    return problems


def _grader_path(source: dict[str, JsonValue], holder: dict[str, JsonValue]) -> str:
    at = f"rewards.{holder['name']}" if "name" in holder else "gold"
    return f"sources.{source.get('name')}.{at}.grader"


def load_grader(path: Path | str) -> GraderConfig:
    """Read a grader object from a YAML or JSON file.

    Raises:
        ConfigError: all problems of the file.
    """
    path = Path(path)
    return parse_grader(_read(path), path.name)


def parse_grader(text: str, name: str) -> GraderConfig:
    """Read a grader object from YAML or JSON text that messages call `name`.

    Raises:
        ConfigError: all problems of the text.
    """
    document = read_document(text, name)
    try:
        document.data = write_out(document.data)
    except ValueError as error:
        raise ConfigError([*document.problems, Problem(where=name, what=str(error))]) from None
    return _parse(document, lambda data: GRADER.validate_json(data, strict=True), GraderConfig)


def load_judges(path: Path | str) -> JudgesFile:
    """Read a file of judges and reward models.

    Raises:
        ConfigError: all problems of the file.
    """
    path = Path(path)
    document = read_document(_read(path), path.name)
    for holder, key in _asked_paths(document.data):
        given = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and isinstance(given, str):
            holder[key] = _resolved(given, path.resolve().parent)
    found = _parse(document, _strictly(JudgesFile), JudgesFile)
    if problems := check_judges_file(found):
        raise ConfigError(problems)
    _hide_keys(found.judges)
    return found


def load_infra(path: Path | str) -> InfraConfig:
    """Read an infra file.

    Raises:
        ConfigError: all problems of the file.
    """
    path = Path(path)
    document = read_document(_read(path), path.name)
    return _parse(document, _strictly(InfraConfig), InfraConfig)


def _parse(document: Document, check: Callable[[bytes], T], root: object) -> T:
    """Check a document's data, and say what is wrong with it by line.

    Args:
        root: the section, or union of sections, that it is checked against.
    """
    if document.problems:
        raise ConfigError(document.problems)
    try:
        return check(to_json(document.data))
    except ValidationError as error:
        details = error.errors(include_url=False)
    raise ConfigError(_explained(details, document, {}, root))


def _strictly(model: type[M]) -> Callable[[bytes], M]:
    return lambda data: model.model_validate_json(data, strict=True)


def _resolved(text: str, folder: Path) -> str:
    if not text:
        return text
    path = Path(text).expanduser()
    for base in (Path.cwd(), folder):
        if (base / path).exists():
            return str((base / path).resolve())
        if find_files((str(base / path),)):
            return str(base.resolve() / path)
    return text
