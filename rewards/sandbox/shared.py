"""The sandboxes of this process: one for each set of modules that its inputs need."""

import atexit

from configs.sandbox import SandboxConfig
from rewards.sandbox.jail import Sandbox
from rewards.sandbox.result import MB, Limits
from rewards.sandbox.tiers import choose_tier

_chosen = [SandboxConfig()]


def configure(cfg: SandboxConfig) -> None:
    """Say which walls and limits hold in this process, before the first sandbox is made."""
    _chosen[0] = cfg


def limits_of(cfg: SandboxConfig) -> Limits:
    """Return the limits of one run."""
    return Limits(
        cpu_s=cfg.cpu_s,
        wall_s=2 * cfg.cpu_s + 1,
        memory=cfg.memory_mb * MB,
        processes=cfg.processes,
        output=cfg.output_kb << 10,
        disk=cfg.disk_mb * MB,
        files=cfg.files,
    )


def limits() -> Limits:
    """Return the limits that were configured."""
    return limits_of(_chosen[0])


_made: dict[tuple[bool, tuple[str, ...]], Sandbox] = {}


def sandbox(*, packages: bool = False, preload: tuple[str, ...] = ()) -> Sandbox:
    """Return the process's sandbox with these modules; started by its first run.

    Raises:
        ConfigError: no tier as strong as the one required holds here.
    """
    found = choose_tier(_chosen[0].require)
    key = (packages, preload)
    if key not in _made:
        _made[key] = Sandbox(
            found.tier,
            limits(),
            packages=packages,
            preload=preload,
            own_user_namespace=found.own_user_namespace,
        )
        atexit.register(_made[key].close)
    return _made[key]


def made() -> tuple[Sandbox, ...]:
    """Return the sandboxes so far; a closed one starts again at its next run."""
    return tuple(_made.values())
