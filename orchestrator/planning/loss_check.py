"""Whether the loss exists, takes its arguments, and reads what sources set; its source is read, not
run, because losses import torch."""

import ast
import difflib
from collections.abc import Iterator
from pathlib import Path

from configs.algorithm import CorrectionConfig
from configs.errors import Problem
from configs.schema import RunConfig
from orchestrator.planning.plug_files import find_module, own_modules

_BUILT_IN = "trainer.objectives"
_CLIP = frozenset({"clip_low", "clip_high"})
_SHARED = frozenset({"loss_weight", "kl_coef", "entropy_coef"})
_READS = {
    "finish": _SHARED,
    "clip_range": _CLIP,
    "trust_region": _SHARED,
    "policy_gradient": _SHARED | {"correction"},
    **dict.fromkeys(("ppo_clip", "gspo", "cispo"), _SHARED | _CLIP | {"correction"}),
}
"""Functions of ours, and the fields of LossInputs that each reads for who calls it."""
_FIELDS = _SHARED | _CLIP | {"correction"}
_LEAST = {"dual_clip": 1.0}
"""Bounds, exclusive, of arguments that must be above more than 0."""


def check_loss(cfg: RunConfig) -> list[Problem]:
    """Return every problem with the loss: a name or argument that no built-in one has, and what
    the recipe sets and it would pass over."""
    return [*_check_name(cfg), *_check_passed_over(cfg)]


def _check_name(cfg: RunConfig) -> Iterator[Problem]:
    use, args = cfg.algorithm.loss.use, cfg.algorithm.loss.args
    if ":" in use:
        return
    path = find_module(_BUILT_IN)
    assert path is not None, f"{_BUILT_IN} has no source file"
    losses = {n: f for n, f in _functions(path).items() if n in _listed(path)}
    if use not in losses:
        near = difflib.get_close_matches(use, list(losses), n=1, cutoff=0.5)
        yield Problem(
            where="algorithm.loss",
            what=f"{use!r} is not a built-in loss ({', '.join(losses)})",
            fix=(f"Did you mean `{near[0]}`? " if near else "")
            + "Your own is written `package.module:function`.",
        )
        return
    known = {arg.arg: arg.annotation for arg in losses[use].args.kwonlyargs}
    for name, value in args.items():
        where = f"algorithm.loss.args.{name}"
        if name not in known:
            has = f"has {', '.join(known)}" if known else "takes no argument"
            yield Problem(where=where, what=f"unknown: `{use}` {has}")
        elif (wanted := _wanted(name, known[name], value)) is not None:
            yield Problem(where=where, what=f"is {value!r}, and must be {wanted}")


def _wanted(name: str, annotation: ast.expr | None, value: object) -> str | None:
    """Return what an argument of a built-in loss must be; None where it is that: one of its
    Literal's, or a number above 0 (`dual_clip`: above 1, or nothing)."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=choices)):
            allowed = [c.value for c in choices if isinstance(c, ast.Constant)]
            return None if value in allowed else " or ".join(map(repr, allowed))
        case ast.BinOp() if value is None:
            return None
        case _:
            least = _LEAST.get(name, 0.0)
            number = (
                -1.0 if isinstance(value, bool) or not isinstance(value, int | float) else value
            )
            return None if number > least else f"a number above {least:g}"


def _listed(path: Path) -> set[str]:
    """Return the keys of the module's BUILT_IN."""
    for node in _parse(path).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id="BUILT_IN"), value=ast.Dict(keys=keys)):
                return {str(key.value) for key in keys if isinstance(key, ast.Constant)}
            case _:
                continue
    raise AssertionError(f"{path} has no BUILT_IN")


def _check_passed_over(cfg: RunConfig) -> list[Problem]:
    """Return a problem for everything that the recipe sets and the loss would pass over."""
    use, given = cfg.algorithm.loss.use, list(_given(cfg))
    read = _fields_read(use) if given else None
    return [
        Problem(
            where=where,
            what=f"{what}, but the loss `{use}` does not read {field}",
            fix=f"Remove it; or let the loss use x.{field}{_helper(field)}.",
        )
        for where, field, what in given
        if read is not None and field not in read
    ]


def _given(cfg: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Yield what the recipe sets of the loss: where, the field of LossInputs that has it, what."""
    algorithm = cfg.algorithm
    for source in cfg.sources:
        for name in ("clip_low", "clip_high", "loss_weight", "truncated_loss_weight"):
            field, value = name.removeprefix("truncated_"), getattr(source, name)
            if value != type(source).model_fields[name].default:
                yield f"sources.{source.name}.{name}", field, f"is {value:g}"
    if algorithm.aggregation == "sequence_mean":
        yield "algorithm.aggregation", "loss_weight", "is sequence_mean"
    if cfg.needs_reference and algorithm.kl.placement == "loss":
        yield "algorithm.kl", "kl_coef", "is a term of the loss"
    if algorithm.entropy.coef > 0 or algorithm.entropy.target is not None:
        yield "algorithm.entropy", "entropy_coef", "is a term of the loss"
    if ":" in algorithm.loss.use and algorithm.correction != CorrectionConfig():
        yield "algorithm.correction", "correction", "is set"


def _helper(field: str) -> str:
    if field in _CLIP:
        return ", or trainer.objectives.clip_range"
    return ", or trainer.loss.finish" if field in _SHARED else ""


def _fields_read(use: str) -> set[str] | None:
    """Return the fields that a loss reads; None where its source cannot be found."""
    module, attribute, _ = use.partition(":")
    if not attribute:
        path = find_module(_BUILT_IN)
        functions = _functions(path) if path is not None else {}
        return _named(functions[use]) if use in functions else None
    files = own_modules(module)
    read = {name for path in files.values() for name in _named(_parse(path))}
    return read if files else None


def _named(tree: ast.AST) -> set[str]:
    """Return the fields that some code reads, itself or through a function that does."""
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called = (_READS[name] for name in set(_mentioned(tree)) & _READS.keys())
    return (attributes & _FIELDS).union(*called)


def _mentioned(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _functions(path: Path) -> dict[str, ast.FunctionDef]:
    body = _parse(path).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError:  # told when the module is imported
        return ast.Module(body=[], type_ignores=[])
