"""The one way of plugging things in: a built-in name or `module:attribute`, checked early."""

import difflib
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from configs.errors import ConfigError, Problem

NO_BUILTINS: Mapping[str, object] = MappingProxyType({})


def resolve(use: str, builtins: Mapping[str, object] = NO_BUILTINS, *, where: str = "") -> object:
    """Return what `use` names: an entry of `builtins`, or the attribute of an imported module.

    Args:
        where: field path for the error message; empty takes `use` itself.

    Raises:
        ConfigError: no such built-in, module or attribute, or the module fails to import.
    """
    if use in builtins:
        return builtins[use]
    where = where or repr(use)
    available = ", ".join(f"`{name}`" for name in sorted(builtins))
    if ":" not in use:
        near = difflib.get_close_matches(use, list(builtins), n=1, cutoff=0.5)
        raise ConfigError(
            Problem(
                where=where,
                what=f"{use!r} is not a built-in name ({available or 'there are none'})",
                fix=(f"Did you mean `{near[0]}`? " if near else "")
                + "Your own code is written `package.module:attribute`.",
            )
        )
    module_name, _, attribute = use.partition(":")
    module = _import(module_name, use, where)
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                Problem(
                    where=where,
                    what=f"{use!r}: {getattr(module, '__file__', module_name)} has no "
                    f"attribute {attribute!r}",
                    fix=_names_near(attribute, module),
                )
            )
        found = getattr(found, part)
    return found


def _import(name: str, use: str, where: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        own = missing == name or name.startswith(missing + ".")
        what = "not found" if own else f"imports {missing!r}, which is not installed"
        fix = (
            "Check the spelling; the module must be importable from the folder you run in."
            if own
            else f"Install {missing!r} on every node."
        )
        problem = Problem(where=where, what=f"{use!r}: module {name!r} {what}", fix=fix)
        raise ConfigError(problem) from error
    except (Exception, SystemExit) as error:
        problem = Problem(
            where=where,
            what=f"{use!r}: importing module {name!r} failed: {type(error).__name__}: {error}",
        )
        raise ConfigError(problem) from error


def _names_near(attribute: str, module: object) -> str:
    public = [name for name in vars(module) if not name.startswith("_")]
    near = difflib.get_close_matches(attribute, public, n=1, cutoff=0.5)
    if near:
        return f"Did you mean `{near[0]}`?"
    return f"It has: {', '.join(public[:12]) or 'no public names'}."


def bind(
    fn: object,
    args: Mapping[str, object],
    *,
    parameters: tuple[str, ...],
    use: str = "",
    where: str = "",
) -> Callable[..., Any]:
    """Return `fn` with `args` bound as keywords, after checking it against its signature.

    Args:
        fn: a function, or a class whose constructor is meant.
        args: keyword arguments of the recipe; checked by name, and by type where annotated.
        parameters: names, for the message, of what the caller will pass by position.

    Raises:
        ConfigError: not callable, an argument unknown, missing or of the wrong type.
    """
    use = use or str(getattr(fn, "__qualname__", fn))
    where = where or repr(use)
    if not callable(fn):
        raise ConfigError(Problem(where=where, what=f"{use!r} is not a function or class"))
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # built-ins written in C tell no signature
        return functools.partial(fn, **args)
    problem = _misfit(signature, args, parameters)
    if problem is not None:
        raise ConfigError(
            Problem(
                where=f"{where}.args" if args else where,
                what=f"{use!r} {problem[0]}",
                fix=problem[1]
                or f"It is called as `{_call(parameters, args)}`; its signature is `{signature}`.",
            )
        )
    typed = {name: _typed(fn, name, value, use, where) for name, value in args.items()}
    return functools.partial(fn, **typed)


def _misfit(
    signature: inspect.Signature, args: Mapping[str, object], parameters: tuple[str, ...]
) -> tuple[str, str] | None:
    """Return what does not fit and the fix, or None."""
    kinds = inspect.Parameter
    named = [p for p in signature.parameters.values() if p.kind != kinds.VAR_POSITIONAL]
    takes_any = any(p.kind == kinds.VAR_KEYWORD for p in named)
    positional = [p for p in named if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = {p.name for p in positional[: len(parameters)]}
    free = [
        p.name
        for p in named
        if p.name not in taken and p.kind not in (p.POSITIONAL_ONLY, p.VAR_KEYWORD)
    ]
    unknown = [name for name in args if name not in free and name not in taken]
    if unknown and not takes_any:
        near = difflib.get_close_matches(unknown[0], free, n=1, cutoff=0.5)
        names = ", ".join(f"`{name}`" for name in free) or "none"
        fix = f"Did you mean `{near[0]}`?" if near else f"Its arguments are: {names}."
        return f"has no argument {unknown[0]!r}", fix
    try:
        signature.bind(*([None] * len(parameters)), **args)
    except TypeError as error:
        return f"does not fit: {error}", ""
    return None


def _call(parameters: tuple[str, ...], args: Mapping[str, object]) -> str:
    return f"f({', '.join([*parameters, *(f'{name}=...' for name in args)])})"


def _typed(fn: Callable[..., Any], name: str, value: object, use: str, where: str) -> object:
    """Return `value` as the annotation of `name` reads it; unchanged where there is none."""
    target = fn.__init__ if inspect.isclass(fn) else fn
    try:
        hint: object = typing.get_type_hints(target).get(name)
        if hint is None:
            return value
        adapter: TypeAdapter[object] = TypeAdapter(cast(Any, hint))
    except (NameError, TypeError, AttributeError):
        return value
    except (PydanticSchemaGenerationError, PydanticUserError):
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ConfigError(
            Problem(
                where=f"{where}.args.{name}",
                what=f"{use!r} does not take {value!r}: {error.errors()[0]['msg']}",
            )
        ) from error
