"""Folders that `datasets` wrote with `save_to_disk`: which Arrow files hold a split.

They are read as they lie, without importing `datasets`.
"""

import json
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem

_DICT, _STATE = "dataset_dict.json", "state.json"


def is_saved_folder(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / _DICT).is_file() or (folder / _STATE).is_file()


def saved_files(folder: Path, split: str, at: str) -> tuple[Path, ...]:
    """Return the Arrow files of a split, in order; ConfigError if there is no such split.

    Args:
        at: the recipe's field `sources.NAME.data`, for messages.
    """
    if (folder / _DICT).is_file():
        there = [str(name) for name in cast("list[JsonValue]", _read(folder / _DICT)["splits"])]
        part = folder / split
    else:
        there, part = [str(_read(folder / _STATE).get("_split") or "train")], folder
    if split not in there:
        raise ConfigError(
            Problem(
                where=f"{at}.split",
                what=f"{folder} has no split {split!r}; it has {', '.join(there)}",
                fix="Give one of them.",
            )
        )
    state = _read(part / _STATE)
    if state.get("_indices_files"):
        raise ConfigError(
            Problem(
                where=f"{at}.hub",
                what=f"{part} was saved by an old version of `datasets`, with indices apart",
                fix="Load it and save it again with a newer one.",
            )
        )
    entries = cast("list[dict[str, str]]", state["_data_files"])
    return tuple(part / entry["filename"] for entry in entries)


def _read(path: Path) -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", json.loads(path.read_text(encoding="utf-8")))
