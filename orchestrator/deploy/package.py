"""What a Ray job brings with it: the resolved recipe, its small files, and the user's own modules.

The files are named one by one and put into a folder of their own, which becomes the job's working
directory. So no ignore rule of anybody's decides what travels, and what is missing is missing here,
before anything is submitted. Models, and data beyond the limit, lie on the shared storage.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from configs.errors import ConfigError, Problem
from configs.infra import InfraConfig
from configs.schema import RunConfig
from configs.validate_infra import validate_infra
from configs.yaml_text import write_document
from orchestrator.deploy.infra_check import (
    JOB_PACKAGE,
    RECIPE_FILE,
    argument_files,
    check_recipe_on,
    check_recipe_there,
    run_directory,
    run_name,
    travelling_files,
)
from orchestrator.deploy.render import relocate
from orchestrator.planning.plug_files import INSTALLED, own_modules
from orchestrator.records.hashes import plugs_of

DATA_FOLDER = "braid_data"
"""Where the recipe's small data files lie in the package."""
_OURS = frozenset(
    (
        "actors",
        "configs",
        "environments",
        "mixing",
        "orchestrator",
        "rewards",
        "rollouts",
        "trainer",
    )
)
"""Packages that the cluster's image has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What travels, and where it runs."""

    run: str
    """Name of the run, as submission ids take it."""
    run_dir: str
    """Run directory on the cluster's shared storage."""
    files: Mapping[str, bytes]
    """Content by path in the working directory."""
    origins: Mapping[str, str]
    """Where each file was found."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.files.values()))

    @property
    def hash(self) -> str:
        """Hash of all that travels: two jobs of one hash run the same."""
        taken = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            taken.update(f"{name}\0{len(content)}\0".encode())
            taken.update(content)
        return taken.hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Lay the files out in an empty folder."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def make_package(cfg: RunConfig, infra: InfraConfig) -> Package:
    """Return the package of a recipe for a Ray cluster on an infrastructure.

    Raises:
        ConfigError: every problem of the infra file, of the recipe on it, and of what would travel.
    """
    problems = [
        *validate_infra(infra),
        *check_recipe_there(cfg, infra),
        *check_recipe_on(cfg, infra, JOB_PACKAGE),
    ]
    data = {f"{DATA_FOLDER}/{n}": path for n, path in travelling_files(cfg, infra).items()}
    found: dict[str, Path] = dict(data)
    for where, name, path in (*_arguments(cfg, infra, problems), *_modules(cfg)):
        if found.get(name, path) != path or name == RECIPE_FILE:
            what = f"{path} and {found.get(name, RECIPE_FILE)} would both be {name} in the job"
            problems.append(Problem(where=where, what=what, fix="Rename one of them."))
        found[name] = path
    if problems:
        raise ConfigError(problems)
    beside = {name.removeprefix(f"{DATA_FOLDER}/"): path for name, path in data.items()}
    recipe = write_document(relocate(cfg, infra, beside, DATA_FOLDER))
    contents = {name: path.read_bytes() for name, path in sorted(found.items())}
    package = Package(
        run=run_name(cfg),
        run_dir=run_directory(cfg, infra),
        files={RECIPE_FILE: recipe.encode(), **contents},
        origins={RECIPE_FILE: "the resolved recipe", **{n: str(p) for n, p in found.items()}},
    )
    if package.size > JOB_PACKAGE.max_bytes:
        raise ConfigError(_too_big(package, infra))
    return package


def _arguments(
    cfg: RunConfig, infra: InfraConfig, problems: list[Problem]
) -> Iterator[tuple[str, str, Path]]:
    """Yield the files that arguments of plugs name: field, name in the package, file. They are
    opened by that name, so they must lie below the folder that braid runs in, as the job will."""
    for where, path in argument_files(cfg, infra).items():
        if path.is_absolute() or ".." in path.parts:
            problems.append(
                Problem(
                    where=where,
                    what=f"{path} lies outside the folder that travels",
                    fix=f"Name it by a path below {Path.cwd()}, or copy it to the storage and "
                    f"give its path below {infra.storage.mount}.",
                )
            )
        else:
            yield where, str(PurePosixPath(path)), path.resolve()


def _modules(cfg: RunConfig) -> Iterator[tuple[str, str, Path]]:
    """Yield the user's own modules, which are neither installed nor ours."""
    for where, _, plug in plugs_of(cfg):
        module, attribute, _ = plug.use.partition(":")
        for name, path in own_modules(module).items() if attribute else ():
            if name.split(".")[0] in _OURS or any(path.is_relative_to(i) for i in INSTALLED):
                continue
            at = name.replace(".", "/")
            file = f"{at}/__init__.py" if path.name == "__init__.py" else f"{at}.py"
            yield where, file, path


def _too_big(package: Package, infra: InfraConfig) -> Problem:
    name, content = max(package.files.items(), key=lambda f: len(f[1]))
    return Problem(
        where=package.origins[name],
        what=f"has {len(content):,} bytes, and all that travels {package.size:,}; a job takes "
        f"{JOB_PACKAGE.max_bytes:,}",
        fix=f"Copy it to the storage and give its path below {infra.storage.mount}.",
    )
