"""What lets us in elsewhere: the token of Ray clusters, and W&B's key."""

import netrc
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from orchestrator.doctor.findings import Finding, Level, Patient


def check_ray_token(patient: Patient) -> Iterator[Finding]:
    """Look for the token without which no Ray cluster should talk to anybody."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    joins = patient.recipe is not None and patient.recipe.ray_address is not None
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        fix = "Unset RAY_AUTH_MODE: whoever reaches such a cluster runs code on it."
        yield _token(Level.FAILED, "RAY_AUTH_MODE=disabled", fix)
    elif os.environ.get("RAY_AUTH_TOKEN"):
        fix = "Better give RAY_AUTH_TOKEN_PATH: variables are seen by every process that we start."
        yield _token(Level.WARNING, "in the variable RAY_AUTH_TOKEN", fix)
    elif not path.is_file():
        wrong = bool(given) or joins
        what = f"there is no {path}" + ("" if wrong else "; a private cluster makes its own")
        fix = f"Put the cluster's token into {path}, readable by you alone." if wrong else ""
        yield _token(Level.FAILED if wrong else Level.OK, what, fix)
    elif (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        fix = f"`chmod 600 {path}`: others on this machine can take the cluster."
        level = Level.FAILED if joins else Level.WARNING  # a private cluster dies with its run
        yield _token(level, f"{path} may be read by others (mode {mode:04o})", fix)
    elif not path.read_text(encoding="utf-8", errors="replace").strip():
        yield _token(Level.FAILED, f"{path} is empty", "Put the cluster's token into it.")
    else:
        yield _token(Level.OK, f"{path}, readable by its owner alone")


def _token(level: Level, detail: str, remedy: str = "") -> Finding:
    return Finding(section="access", name="ray token", level=level, detail=detail, remedy=remedy)


def check_wandb(patient: Patient) -> Iterator[Finding]:
    """Look for the key, where the recipe logs to W&B's server."""
    if patient.recipe is None or patient.recipe.logging.wandb != "online":
        return
    there = bool(os.environ.get("WANDB_API_KEY")) or _in_netrc()
    yield Finding(
        section="access",
        name="wandb",
        level=Level.OK if there else Level.FAILED,
        detail="a key is set" if there else "logging.wandb is online, but there is no key",
        remedy="" if there else "Set WANDB_API_KEY, run `wandb login`, or set it to offline.",
    )


def _in_netrc() -> bool:
    path = Path(os.environ.get("NETRC", str(Path.home() / ".netrc")))
    try:
        return netrc.netrc(str(path)).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
