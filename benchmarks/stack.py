"""What the benchmarks of whole runs share: `braid` as a user calls it, and what a run leaves."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks.md"
BRAID = Path(sys.executable).with_name("braid")


def start(*arguments: object, log: Path) -> subprocess.Popen[bytes]:
    """Start `braid` in the repository's root, as `make` does; all that it prints goes to `log`."""
    env = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    with log.open("a") as out:
        command = [str(BRAID), *map(str, arguments)]
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)


def braid(*arguments: object, log: Path) -> None:
    """Have `braid` do something, to its end; SystemExit if that is not a good one."""
    code = start(*arguments, log=log).wait()
    if code != 0:
        raise SystemExit(f"braid {' '.join(map(str, arguments))} ended with {code}; see {log}")


def overrides(fields: dict[str, object]) -> Sequence[str]:
    """Return fields as `--set` arguments."""
    return [a for key, value in fields.items() for a in ("--set", f"{key}={json.dumps(value)}")]


def records(path: Path) -> list[dict[str, Any]]:
    """Return a file of JSON lines; nothing if there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def ledger(run_dir: Path) -> dict[str, Any]:
    """Return what `braid ledger` says of a run, balanced or not."""
    command = [str(BRAID), "ledger", str(run_dir), "--json"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if asked.returncode not in (0, 1) or not asked.stdout:
        raise SystemExit(f"braid ledger {run_dir}: {asked.stderr}")
    return json.loads(asked.stdout)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, its first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def section(page: str, name: str) -> str:
    """Return what stands between a page's marks of `name`; ValueError if it has none."""
    _, _, rest = page.partition(f"<!-- {name} -->\n\n")
    inside, mark, _ = rest.partition(f"\n<!-- end of {name} -->")
    if not mark:
        raise ValueError(f"the page has no marks of {name}")
    return inside


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Put text between the page's marks of `name`."""
    before = page.read_text()
    old = section(before, name)
    marks = "<!-- {} -->\n\n{}\n<!-- end of {} -->"
    page.write_text(before.replace(marks.format(name, old, name), marks.format(name, text, name)))


def commit() -> str:
    """Return the commit that is checked out."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def show_figures(figures: Mapping[str, object], file: Path | None) -> None:
    """Print figures in a column; write them as JSON where asked."""
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value}")
    if file:
        file.write_text(json.dumps(figures, indent=2) + "\n")


def made_on(run_dirs: Iterable[Path]) -> dict[str, object]:
    """Return the device, and the commits that the attempts at these runs were of."""
    paths = [path for run_dir in run_dirs if (path := run_dir / "run.json").exists()]
    attempts = [a for path in paths for a in json.loads(path.read_text())["attempts"]]
    commits = dict.fromkeys(str(attempt["git_commit"])[:7] for attempt in attempts)
    device = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return {"device": device, "commits": list(commits)}
