"""Whether the chosen loss reads the clip ranges that sources set; its source is read, not run."""

import ast
from collections.abc import Iterator
from pathlib import Path

from configs.errors import Problem
from configs.schema import RunConfig
from orchestrator.plug_files import find_module, own_modules

_BUILT_IN = "trainer.loss"
_STREAMS = ("clip_low", "clip_high")
_READERS = ("clip_range", "ppo_clip")
"""Functions of the built-in losses' module that read both streams for who calls them."""


def check_clip(cfg: RunConfig) -> list[Problem]:
    """Return a problem for each clip range of a source that the loss would pass over."""
    given = [
        (f"sources.{source.name}.{field}", field, value)
        for source in cfg.sources
        for field in _STREAMS
        if (value := getattr(source, field)) is not None
    ]
    read = _streams_read(cfg.algorithm.loss.use) if given else set[str]()
    return [
        Problem(
            where=where,
            what=f"is {value:g}, but the loss `{cfg.algorithm.loss.use}` does not read {field}",
            fix=f"Remove it; or let the loss use x.{field}, or trainer.loss.clip_range.",
        )
        for where, field, value in given
        if read is not None and field not in read
    ]


def _streams_read(use: str) -> set[str] | None:
    """Return the clip streams that a loss reads; None where its source cannot be found."""
    module, attribute, _ = use.partition(":")
    if not attribute:
        path = find_module(_BUILT_IN)
        functions = _functions(path) if path is not None else {}
        return _named(functions[use]) if use in functions else None
    files = own_modules(module)
    read = {name for path in files.values() for name in _named(_parse(path))}
    return read if files else None


def _named(tree: ast.AST) -> set[str]:
    """Return the clip streams that some code reads, itself or through a function that does."""
    names = set(_mentioned(tree))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return set(_STREAMS) if names & set(_READERS) else attributes & set(_STREAMS)


def _mentioned(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _functions(path: Path) -> dict[str, ast.AST]:
    body = _parse(path).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError:  # told when the module is imported
        return ast.Module(body=[], type_ignores=[])
