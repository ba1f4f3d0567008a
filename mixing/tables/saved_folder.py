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
    """Return the Arrow files of a split, in order; ConfigError if there is no such split, OSError
    or ValueError if the folder is damaged.

    Args:
        at: the recipe's field `sources.NAME.data`, for messages.
    """
    if (folder / _DICT).is_file():
        there = cast("list[str]", _read(folder / _DICT, "splits") or [])
        part = folder / split
    else:
        there, part = [str(_read(folder / _STATE, "_split") or "train")], folder
    if split not in there:
        raise ConfigError(
            Problem(
                where=f"{at}.split",
                what=f"{folder} has no split {split!r}; it has {', '.join(there)}",
                fix="Give one of them.",
            )
        )
    if _read(part / _STATE, "_indices_files"):
        raise ConfigError(
            Problem(
                where=f"{at}.hub",
                what=f"{part} was saved by an old version of `datasets`, with indices apart",
                fix="Load it and save it again with a newer one.",
            )
        )
    entries = cast("list[dict[str, str]]", _read(part / _STATE, "_data_files") or [])
    return tuple(part / entry["filename"] for entry in entries)


def _read(path: Path, key: str) -> JsonValue:
    """Return one value of a JSON file; null if it has none."""
    read = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        raise ValueError(f"{path} holds no object")
    return cast("dict[str, JsonValue]", read).get(key)
