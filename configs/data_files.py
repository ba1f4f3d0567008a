"""Files that a source's paths and globs stand for."""

import glob
from collections.abc import Sequence
from pathlib import Path


def find_files(patterns: Sequence[str]) -> tuple[Path, ...]:
    """Return the files, those of a glob sorted, each once; a path without one stands for none."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        given = Path(pattern).expanduser()
        if given.is_file():
            found[given] = None
        elif glob.has_magic(pattern):
            there = sorted(glob.glob(str(given), recursive=True))
            found.update((Path(p), None) for p in there if Path(p).is_file())
    return tuple(found)


def missing(patterns: Sequence[str]) -> list[str]:
    """Return the paths and globs that stand for no file."""
    return [p for p in patterns if not find_files((p,))]
