"""What two runs differ in: recipe, data, code, model, versions, and how they fared."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Change = dict[str, Any]
_ABSENT = None


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Return the differences of two runs as `gather` gives them."""
    return {
        "config": changes(a["config"], b["config"]),
        "hashes": changes(_hashes(a), _hashes(b), split=False),
        "versions": changes(_last(a, "versions"), _last(b, "versions"), split=False),
        "commits": [_last(a, "git_commit"), _last(b, "git_commit")],
        "held_out": list(_held_out(a, b)),
    }


def changes(a: Any, b: Any, *, split: bool = True) -> list[Change]:
    """Return where two trees differ: `path`, `a`, `b`; what one of them lacks is None.

    Items of a list that have a `name`, as sources do, are matched by it, other lists by place.
    """
    left, right = dict(_leaves(a, split)), dict(_leaves(b, split))
    return [
        {"path": path, "a": left.get(path, _ABSENT), "b": right.get(path, _ABSENT)}
        for path in dict.fromkeys([*left, *right])
        if left.get(path, _ABSENT) != right.get(path, _ABSENT) or (path in left) != (path in right)
    ]


def _leaves(value: Any, split: bool, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _leaves(each, split, f"{at}.{key}" if at else str(key))
    elif split and isinstance(value, list) and value:
        named = [isinstance(v, Mapping) and isinstance(v.get("name"), str) for v in value]
        names = [v["name"] if all(named) else str(i) for i, v in enumerate(value)]
        unique = len(set(names)) == len(names)
        for i, each in enumerate(value):
            yield from _leaves(each, split, f"{at}[{names[i] if unique else i}]")
    else:
        yield at, value


def _last(run: Mapping[str, Any], key: str) -> Any:
    return run["attempts"][-1].get(key) if run["attempts"] else None


def _hashes(run: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of data, code and model; the recipe's differ field by field above."""
    found = (_last(run, "hashes") or {}).items()
    return {key: str(own["hash"]) for key, own in found if not key.startswith("recipe.")}


def _held_out(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    """Yield each source's latest pass rates; a difference only where they were measured alike."""
    left = {s["source"]: s for s in a["standings"]}
    right = {s["source"]: s for s in b["standings"]}
    for source in dict.fromkeys([*left, *right]):
        one, other = left.get(source), right.get(source)
        alike = bool(one and other and one["now"]["settings"] == other["now"]["settings"])
        found: Change = {"source": source, "a": None, "b": None, "alike": alike, "difference": None}
        for side, standing in (("a", one), ("b", other)):
            if standing is not None:
                found[side] = {"start": standing["start"], "now": standing["now"]}
        if one and other and alike:
            found["difference"] = other["now"]["rate"] - one["now"]["rate"]
            errors = [one["now"]["stderr"], other["now"]["stderr"]]
            found["stderr"] = sum(e * e for e in errors) ** 0.5
        yield found


def render_diff(
    a: Mapping[str, Any], b: Mapping[str, Any], found: Mapping[str, Any]
) -> RenderableType:
    """Return the differences for a terminal."""
    shown: list[RenderableType] = [Text(f"A  {_line(a)}"), Text(f"B  {_line(b)}")]
    if found["held_out"]:
        shown.append(_rates(found["held_out"]))
    titles = {"config": "recipe", "hashes": "data, code and model, by hash", "versions": "versions"}
    for key, title in titles.items():
        rows = found[key]
        if not rows:
            shown.append(Text(f"{title}: no difference", style="dim"))
            continue
        table = _table(title, "A", "B")
        for row in rows:
            table.add_row(Text(row["path"]), Text(_short(row["a"])), Text(_short(row["b"])))
        shown.append(table)
    if found["commits"][0] != found["commits"][1]:
        commits = " and ".join(str(c or "none known")[:12] for c in found["commits"])
        shown.append(Text(f"commits: {commits}"))
    return Group(*shown)


def _rates(rows: list[Change]) -> Table:
    table = _table("held-out pass rate, latest", "A", "B", "B − A", "standard error")
    for row in rows:
        rates = [f"{row[s]['now']['rate']:.1%}" if row[s] else "–" for s in ("a", "b")]
        if row["difference"] is not None:
            more = (f"{row['difference']:+.3f}", f"{row['stderr']:.3f}")
        else:
            more = ("measured otherwise" if row["a"] and row["b"] else "–", "–")
        table.add_row(Text(row["source"]), *rates, *more)
    return table


def _line(run: Mapping[str, Any]) -> str:
    steps = f"step {run['step']} of {run['num_steps'] or '?'}"
    return f"{run['path']}: {run['name']}, {steps}, {run['status']['text']}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", *columns):
        table.add_column(column, overflow="fold")
    return table


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
