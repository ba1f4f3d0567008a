"""Python that comes with a model: runs only where the recipe pins what was read."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.engines import ModelConfig
from configs.errors import ConfigError, Problem

_COMMIT = re.compile(r"[0-9a-f]{40}")


def code_hash(folder: Path) -> str | None:
    """Return `sha256:...` over a folder's Python files, names and contents; None without any."""
    files = sorted(p for p in folder.rglob("*.py") if p.is_file())
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return f"sha256:{digest.hexdigest()}"


def check_code(model: ModelConfig, where: str) -> Iterator[Problem]:
    """Yield why the model's own Python may not run, or cannot be left out."""
    at, pin = f"{where}.trust_remote_code", model.trust_remote_code
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        if pin is not None and not _COMMIT.fullmatch(pin):
            what = f"pins a folder's files, but {model.path} is a hub name"
            yield Problem(where=at, what=what, fix="Pin the commit that you read, 40 hex digits.")
        return
    found = code_hash(folder)
    if pin is None:
        if _wants_code(folder):
            yield Problem(
                where=at,
                what=f"{folder} is a model that needs Python of its own (`auto_map` of its "
                "config.json), which does not run unless it is pinned",
                fix=f"Read its files, then set it to {found}." if found else "",
            )
    elif found is None:
        yield Problem(where=at, what=f"{folder} has no Python of its own", fix="Remove it.")
    elif pin != found:
        how = "pins a commit, but the model is a folder" if _COMMIT.fullmatch(pin) else "differs"
        what = f"{how}: the Python files of {folder} have {found}"
        yield Problem(where=at, what=what, fix="Read them, then set it to that.")


def code_options(model: ModelConfig, where: str = "model") -> dict[str, Any]:
    """Return what every `from_pretrained` is told; a folder's files are looked at once more.

    Raises:
        ConfigError: they are not those that the recipe pins.
    """
    pin = model.trust_remote_code
    if pin is None:
        return {"trust_remote_code": False}
    if problems := list(check_code(model, where)):
        raise ConfigError(problems)
    if not _COMMIT.fullmatch(pin):
        return {"trust_remote_code": True}
    return {"trust_remote_code": True, "revision": pin, "code_revision": pin}


def _wants_code(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "auto_map" in config
