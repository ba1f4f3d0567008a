"""What a run is made of, as hashes: its data, its graders' and environments' code, its model.

Kept in run.json for each attempt and compared at the next one, so that nothing changes silently
under a run. The recipe's own fields are compared by `orchestrator.resume.rules`, one by one.
Nothing is imported here: code is found and read as files.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import JsonValue
from pydantic.dataclasses import dataclass

from configs.data import DataConfig
from configs.errors import Problem
from configs.graders.answers import FunctionGrader
from configs.graders.union import GraderConfig
from configs.model_files import find_model_folder
from configs.plug import PlugConfig
from configs.schema import RunConfig, dump
from configs.versions import PROJECT
from orchestrator.planning.plug_files import ROOT, find_module, own_modules
from rewards.registry import children

_BUILT_IN = {
    "rewards": "rewards.graders",
    "environment": "environments.environment",
    "advantage": "rollouts.advantages",
    "loss": "trainer.objectives",
}
"""Kind of plug -> module of the built-in ones."""
_TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a model's folder that say what the model reads and is; hashed whole."""
_BLOCKS, _BLOCK_BYTES = 64, 4096
"""What is read of a weight file besides its size: blocks spread over it, both ends included."""
_MODEL = ("model.", "reference.", "critic.", "judges.", "reward_models.", "teachers.")
_DATA_PATHS = ("jsonl", "parquet", "hub", "held_out_file")
"""Fields of `data` that say where the rows lie."""


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """One thing that a run is made of."""

    hash: str
    of: str
    """File, package or dataset that was hashed."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that is not what it was at the last attempt."""

    what: str
    """Its key among the hashes, e.g. `sources.sums.data` or `code.my_graders`."""
    before: Hashed | None
    """None if it was not there."""
    after: Hashed | None
    """None if it is not there any more."""

    @property
    def how(self) -> str:
        """The file or package, and its hashes."""
        before, after = self.before, self.after
        if before is not None and after is not None:
            return f"{after.of} changed: hash {before.hash} -> {after.hash}"
        if after is not None:
            return f"{after.of} is new: hash {after.hash}"
        assert before is not None
        return f"{before.of} is gone: hash {before.hash}"

    def __str__(self) -> str:
        return f"{self.what}: {self.how}"


def run_hashes(cfg: RunConfig, data: Mapping[str, str]) -> dict[str, Hashed]:
    """Return the hashes of everything that the run's meaning rests on, by a stable key.

    Args:
        data: fingerprint of each source's items, as the mixer has them.
    """
    found: dict[str, Hashed] = {}
    for source in cfg.sources:
        of = _data_named(source.data) or source.name
        found[f"sources.{source.name}.data"] = Hashed(hash=data[source.name], of=of)
    if any(s.data.procedural for s in cfg.sources):
        found["package.reasoning-gym"] = _package("reasoning-gym")
    found[f"package.{PROJECT}"] = _package(PROJECT)
    found.update(_code(cfg))
    found.update(_model("model", cfg.model.path))
    if cfg.needs_reference and cfg.reference.path is not None:
        found.update(_model("reference", cfg.reference.path))
    if cfg.needs_critic and cfg.critic.path is not None:
        found.update(_model("critic", cfg.critic.path))
    for name, judge in cfg.judges.items():
        if judge.engines is not None:
            found.update(_model(f"judges.{name}", judge.engines.model.path))
    for name, model in cfg.reward_models.items():
        found.update(_model(f"reward_models.{name}", model.model.path))
    for name, teacher in cfg.teachers.items():
        found.update(_model(f"teachers.{name}", teacher.model.path))
    for section, value in dump(cfg).items():
        found[f"recipe.{section}"] = Hashed(hash=_digest(_canonical(value)), of="the recipe")
    return found


def _data_named(data: DataConfig) -> str:
    """Return what the recipe calls the data."""
    return data.procedural or data.hub or ", ".join(data.jsonl or data.parquet or ())


def changes(before: Mapping[str, Hashed], after: Mapping[str, Hashed]) -> list[Change]:
    """Return what differs, recipe sections left out; a model's files only where both attempts
    saw some, as those of a hub name may not have been on this machine yet."""
    for kind in _MODEL:
        if not all(any(key.startswith(kind) for key in side) for side in (before, after)):
            before, after = _without(before, kind), _without(after, kind)
    before, after = _without(before, "recipe."), _without(after, "recipe.")
    return [
        Change(what=key, before=before.get(key), after=after.get(key))
        for key in dict.fromkeys([*after, *before])
        if _hash_of(before.get(key)) != _hash_of(after.get(key))
    ]


def may_have_moved(before: Mapping[str, Hashed], after: Mapping[str, Hashed]) -> list[str]:
    """Return the recipe's fields that name files whose content is what it was: another path in one
    of them changes nothing."""
    same = [key for key in before if _hash_of(before[key]) == _hash_of(after.get(key))]
    fields = [key for key in same if ".args." in key]
    for key in same:
        if key.startswith("sources.") and key.endswith(".data"):
            fields += [f"{key}.{kind}" for kind in _DATA_PATHS]
    for kind in _MODEL:
        ours, theirs = ({k for k in side if k.startswith(kind)} for side in (before, after))
        if ours and ours == theirs and ours <= set(same):
            fields.append(f"{kind}path")
    return fields


def silent_changes(found: list[Change], attempt: int) -> list[Problem]:
    """Return a problem for each change, which nobody has said is meant."""
    return [
        Problem(
            where=change.what,
            what=f"{change.how}, since attempt {attempt} of this run",
            fix="Put the old one back, go on with the new one by --accept-changes, or give "
            "another --run-dir.",
        )
        for change in found
    ]


def _without(side: Mapping[str, Hashed], kind: str) -> dict[str, Hashed]:
    return {key: value for key, value in side.items() if not key.startswith(kind)}


def _hash_of(hashed: Hashed | None) -> str | None:
    return None if hashed is None else hashed.hash


def plugs_of(cfg: RunConfig) -> Iterator[tuple[str, str, PlugConfig]]:
    """Yield where, kind and plug of everything plugged in."""
    for source in cfg.sources:
        at = f"sources.{source.name}"
        for reward in source.rewards:
            for function in _functions(reward.definition):
                plug = PlugConfig(use=function.use, args=function.args)
                yield f"{at}.rewards.{reward.name}", "rewards", plug
        if source.gold is not None:
            for function in _functions(source.gold.grader):
                yield f"{at}.gold", "rewards", PlugConfig(use=function.use, args=function.args)
        yield f"{at}.environment", "environment", source.environment
        yield f"{at}.advantage", "advantage", source.advantage
    yield "algorithm.loss", "loss", cfg.algorithm.loss


def _functions(cfg: GraderConfig) -> Iterator[FunctionGrader]:
    if isinstance(cfg, FunctionGrader):
        yield cfg
    for _, child in children(cfg):
        yield from _functions(child)


def _code(cfg: RunConfig) -> dict[str, Hashed]:
    """Hash the modules of all plugs, with the modules of the user's own that they import, and the
    files that their arguments name."""
    found: dict[str, Hashed] = {}
    for where, kind, plug in plugs_of(cfg):
        module, attribute, _ = plug.use.partition(":")
        if not attribute:
            module = _BUILT_IN[kind]
            path = find_module(module)
            files = {module: path} if path is not None else {}
        else:
            files = own_modules(module)
        for name, path in files.items():
            of = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            found[f"code.{name}"] = Hashed(hash=_digest(path.read_bytes()), of=str(of))
        for name, path in files_in(plug.args, f"{where}.args"):
            found[name] = Hashed(hash=_file_digest(path), of=str(path))
    return found


def files_in(value: JsonValue, where: str) -> Iterator[tuple[str, Path]]:
    """Yield the files that a plug's arguments name, such as a rubric."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from files_in(below, f"{where}.{key}")
    elif isinstance(value, list):
        for i, below in enumerate(value):
            yield from files_in(below, f"{where}.{i}")
    elif isinstance(value, str) and 0 < len(value) < 1024 and "\0" not in value:
        path = Path(value)
        if path.suffix and path.is_file():
            yield where, path


def _package(name: str) -> Hashed:
    try:
        return Hashed(hash=version(name), of=f"version of {name}")
    except PackageNotFoundError:
        return Hashed(hash="not installed", of=f"version of {name}")


def _model(role: str, path: str) -> dict[str, Hashed]:
    """Hash a model's small files whole and its weights by size and samples; nothing where it is
    not on this machine."""
    folder = find_model_folder(path)
    if folder is None:
        return {}
    code = sorted(p.name for p in folder.glob("*.py"))
    whole = [folder / name for name in (*_TEXT_FILES, *code) if (folder / name).is_file()]
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    return {
        **{f"{role}.{p.name}": Hashed(hash=_file_digest(p), of=str(p)) for p in whole},
        **{f"{role}.{p.name}": Hashed(hash=_sampled_digest(p), of=str(p)) for p in weights},
    }


def _sampled_digest(path: Path) -> str:
    """Hash a large file's size and blocks spread over it: finds other weights, in milliseconds."""
    size = path.stat().st_size
    taken = hashlib.sha256(str(size).encode())
    last = max(0, size - _BLOCK_BYTES)
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek(last * block // (_BLOCKS - 1))
            taken.update(file.read(_BLOCK_BYTES))
    return taken.hexdigest()[:16]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _canonical(value: JsonValue) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
