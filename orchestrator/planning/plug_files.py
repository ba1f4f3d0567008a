"""The source files of what is plugged in, found without importing any of it."""

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Folder of our own packages."""
_OURS = frozenset(p.parent.name for p in ROOT.glob("*/__init__.py"))
INSTALLED = tuple(
    Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def find_module(name: str) -> Path | None:
    """Return the source file of a module or package; None where there is none (built in, in C, a
    namespace, or missing)."""
    top, *below = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):
        return None
    if spec is None:
        return None
    if not below:
        origin = Path(spec.origin or "")
        return origin if origin.suffix == ".py" else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *below)
        for candidate in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def own_modules(name: str) -> dict[str, Path]:
    """Return a module and all that it imports of its author's: those of its top-level package,
    and any that is neither installed nor ours. By name, with their source files."""
    package = name.split(".")[0]
    found: dict[str, Path] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        path = None if module in found else find_module(module)
        if path is None or (module != name and not _is_own(module, path, package)):
            continue
        found[module] = path
        waiting.extend(_parents(module))
        waiting.extend(_imported(module, path))
    return dict(sorted(found.items()))


def _is_own(module: str, path: Path, package: str) -> bool:
    top = module.split(".")[0]
    if top == package:
        return True
    return top not in _OURS and not any(path.is_relative_to(i) for i in INSTALLED)


def _parents(module: str) -> Iterator[str]:
    """Yield the packages that are imported on the way to a module."""
    parts = module.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _imported(module: str, path: Path) -> Iterator[str]:
    """Yield what a module's source imports, at any depth; of `from a import b` both a and a.b."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return
    base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            start = ".".join([*above, *filter(None, [node.module])])
            if start:
                yield start
            yield from (".".join(filter(None, [start, alias.name])) for alias in node.names)
