"""Files that a source's paths and globs stand for, none of which lies elsewhere than it says."""

import glob
import os
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


def strays(pattern: str) -> list[tuple[Path, Path]]:
    """Return what a glob, or a folder, finds within it that really lies outside: (link, where it
    leads). A path written out is its writer's word, and never one of these."""
    given = Path(pattern).expanduser()
    if given.is_dir():
        root, found = _root(given), _links(given)
    elif glob.has_magic(pattern) and not given.is_file():
        kept = given.parts[: next(i for i, p in enumerate(given.parts) if glob.has_magic(p))]
        root, found = (Path(*kept) if kept else Path()), list(find_files((pattern,)))
    else:
        return []
    real = root.resolve()
    ends = ((path, path.resolve()) for path in found)
    return [(path, end) for path, end in ends if not end.is_relative_to(real)]


def _links(folder: Path) -> list[Path]:
    """Return the links in a folder, to files and folders; what cannot be read is left out."""
    below = ((at, name) for at, dirs, files in os.walk(folder) for name in (*dirs, *files))
    return [path for at, name in below if (path := Path(at, name)).is_symlink()]


def _root(folder: Path) -> Path:
    """Return the folder itself, or the repository of a hub snapshot, whose files are links."""
    return folder.parents[1] if folder.parent.name == "snapshots" else folder
