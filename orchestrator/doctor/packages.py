"""Versions against those that the project is tested with; nothing is imported."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError

from configs.versions import PROJECT, check_versions, installed_versions
from orchestrator.doctor.findings import Finding, Level, Patient


def check_packages(patient: Patient) -> Iterator[Finding]:
    """Compare what is installed with the tested versions; nothing is imported."""
    python = platform.python_version()
    good = (3, 11) <= sys.version_info < (3, 13)
    yield Finding(
        section="packages",
        name="python",
        level=Level.OK if good else Level.FAILED,
        detail=python,
        remedy="" if good else "Use Python 3.11 or 3.12.",
    )
    problems = {problem.where: problem for problem in check_versions()}
    try:
        versions = installed_versions()
    except PackageNotFoundError:
        versions = {}
    for name in sorted({*versions, *problems}):
        problem = problems.get(name)
        missing = name not in versions or name == PROJECT
        wrong = Level.FAILED if missing else Level.WARNING
        yield Finding(
            section="packages",
            name=name,
            level=Level.OK if problem is None else wrong,
            detail=versions[name] if problem is None else problem.what,
            remedy="" if problem is None else problem.fix,
        )
