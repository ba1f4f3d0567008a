"""The matrix of attacks: every tier that stands, as ourselves and, where we are root, as nobody.

    python tests/sandbox/matrix.py [--markdown]

`fight_in` runs one arena in a process of its own; the tests use it too.
"""

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from rewards.sandbox.result import Tier
from rewards.sandbox.tiers import probe

_AS_NOBODY = """
set -e
mount --bind "$1" "$3/python"
mount --bind "$2" "$3/code"
interpreter="$3/python/${4#"$1"/}"
cd "$3/code"
shift 4
arena="$interpreter -B tests/sandbox/arena.py"
exec setpriv --reuid 65534 --regid 65534 --clear-groups $arena "$@"
"""
_NOT_HERE = ("unshare:", "mount:", "setpriv:", "TierUnavailable")
"""In the last words of an arena that this machine does not let us enter as another user."""
_TIMEOUT_S = 110.0


class NoArena(Exception):
    """The arena cannot be entered as this user; the message says why."""


@dataclass(frozen=True)
class Fighter:
    """Who attacks what."""

    tier: Tier
    user: str
    """`self`, or `nobody` where we are root."""

    def __str__(self) -> str:
        return f"{self.tier} as {self.user}"


def users() -> tuple[str, ...]:
    """Return as whom attacks can be made here."""
    return ("self", "nobody") if os.geteuid() == 0 else ("self",)


def fight_in(fighter: Fighter, *options: str) -> dict[str, str]:
    """Run the arena; return why each attack won, or nothing, by name.

    Raises:
        NoArena: the other user cannot be had here.
    """
    secret = f"secret-{secrets.token_hex(8)}"
    arguments = [fighter.tier.value, secret, *options]
    folder = tempfile.mkdtemp(prefix="braid-matrix-")
    try:
        os.chmod(folder, 0o755)
        done = subprocess.run(
            _command(fighter, arguments, folder),
            env={"PATH": os.environ["PATH"], "BRAID_SECRET": secret},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    finally:
        shutil.rmtree(folder)
    if done.returncode != 0 or not done.stdout:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if any(word in last for word in _NOT_HERE):
            raise NoArena(f"{fighter} cannot be had here: {last}")
        raise RuntimeError(f"the arena of {fighter} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _command(fighter: Fighter, arguments: Sequence[str], folder: str) -> list[str]:
    """Return the command; nobody gets the interpreter and the code where he can reach them."""
    interpreter = os.path.realpath(sys.executable)
    if fighter.user == "self":
        return [interpreter, "-B", str(ROOT / "tests/sandbox/arena.py"), *arguments]
    for name in ("python", "code"):
        Path(folder, name).mkdir()
    script = ["sh", "-c", _AS_NOBODY, "sh", sys.base_prefix, str(ROOT), folder, interpreter]
    return ["unshare", "-m", "--propagation", "private", *script, *arguments]


def main() -> None:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="Print a table for the docs.")
    given = parser.parse_args()
    columns: dict[str, dict[str, str]] = {}
    for tier in (Tier.BWRAP, Tier.LANDLOCK):
        for user in users():
            fighter = Fighter(tier, user)
            if user == "self" and not probe(tier).works:
                sys.stdout.write(f"{tier}: {probe(tier).detail}\n")
                continue
            try:
                columns[str(fighter)] = fight_in(fighter)
            except NoArena as error:
                sys.stdout.write(f"{error}\n")
    write_matrix(columns, markdown=given.markdown)
    sys.exit(any(why for column in columns.values() for why in column.values()))


def write_matrix(columns: dict[str, dict[str, str]], *, markdown: bool = False) -> None:
    """Print attacks by tier and user, then the sums."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    edge, between = ("| ", " | ") if markdown else ("", "  ")
    widths = [max(map(len, names)), *map(len, columns)]
    rows = [["attack", *columns]]
    rows += [[n, *("WON" if c.get(n) else "held" for c in columns.values())] for n in names]
    sums = [f"{sum(not why for why in c.values())}/{len(c)} held" for c in columns.values()]
    for i, row in enumerate([*rows, ["", *sums]]):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{edge}{between.join(cells)}{edge.rstrip()}\n")
        if markdown and i == 0:
            sys.stdout.write("|" + "---|" * len(row) + "\n")
    for who, column in columns.items():
        for name, why in column.items():
            if why:
                sys.stdout.write(f"{who}: {name}: {why}\n")


if __name__ == "__main__":
    main()
