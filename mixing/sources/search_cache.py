"""Results of the contamination search, kept between `braid plan`, `braid run` and each resume.

A result lies in `$BRAID_CACHE_DIR/contamination`, else in `braid/contamination` of the user's cache
folder, under the hash of all that it is a function of: the code of this package, the search's
settings, and each source's name and content. So none can be stale. A file that cannot be read, is
cut short or altered, or is not of this search counts for nothing: the search is made again. A cache
that cannot be written costs that search alone. Results name items, and hold no text of theirs.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from configs.schema import RunConfig
from mixing.sources.decontaminate import Contamination, find_contamination, searched_sources
from mixing.sources.source import Source

log = logging.getLogger("braid.cache")
_CODE = Path(__file__).parents[1]
"""Folder of this package."""
_KEPT = 64
"""Results kept, those used last."""
_RESULT = TypeAdapter(Contamination)


def cache_folder() -> Path:
    """Return where results lie."""
    if own := os.environ.get("BRAID_CACHE_DIR"):
        return Path(own) / "contamination"
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "braid" / "contamination"


def find_once(cfg: RunConfig, sources: Mapping[str, Source]) -> Contamination:
    """Return what `find_contamination` finds, from the cache where it was found before."""
    searched = searched_sources(cfg, sources)
    if not searched:
        return find_contamination(cfg, sources)
    key = search_key(cfg, sources, searched)
    found = load(key)
    if found is None:
        found = find_contamination(cfg, sources)
        save(key, found)
    return found


def search_key(cfg: RunConfig, sources: Mapping[str, Source], searched: Sequence[str]) -> str:
    """Return the hash of all that the result of a search depends on."""
    how = cfg.decontaminate
    rests_on: dict[str, JsonValue] = {
        "code": [_digest(path.read_bytes()) for path in sorted(_CODE.rglob("*.py"))],
        "reasoning-gym": _installed("reasoning-gym"),
        "settings": [how.ngram, how.max_overlap],
        "sources": [[name, source.fingerprint] for name, source in sources.items()],
        "searched": list(searched),
    }
    return _digest(json.dumps(rests_on).encode())


def load(key: str) -> Contamination | None:
    """Return the result under a key; None where there is none that is whole."""
    path = cache_folder() / f"{key}.json"
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
        if digest != _digest(key.encode() + body).encode():
            raise ValueError("its checksum does not hold")
        found = _RESULT.validate_json(body)
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        log.info("%s is passed over: %s", path, error)
        return None
    return found


def save(key: str, found: Contamination) -> None:
    """Keep a result; a reader never sees a part of it."""
    folder = cache_folder()
    body = json.dumps(asdict(found), separators=(",", ":")).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, beside = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(key.encode() + body).encode() + b"\n" + body)
            os.replace(beside, folder / f"{key}.json")
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
        _drop_oldest(folder)
    except OSError as error:
        log.info("the result of the contamination search is not kept: %s", error)


def _drop_oldest(folder: Path) -> None:
    results = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in results[:-_KEPT]:
        path.unlink(missing_ok=True)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
