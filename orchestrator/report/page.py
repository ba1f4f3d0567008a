"""One HTML file that holds everything: data, style and script, and no address of anything else.

What a run holds (texts that a model wrote among it) is data here and never markup: JSON in a script
element of type application/json, in which `<` cannot stand, and text nodes in the page. Should
that fail, the page's policy runs no script but its own, known by its hash, and asks no network.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

_SCRIPTS = (
    *("dom.js", "chart.js", "series.js", "learning.js", "mix.js", "engines.js", "faults.js"),
    *("recipe.js", "samples.js", "diff.js", "main.js"),
)


def render(data: Mapping[str, Any]) -> bytes:
    """Return the page of a run or of two; `data` has `kind`, `title`, and whether it is `live`."""
    script = "(() => {\n'use strict';\n" + "\n".join(map(_asset, _SCRIPTS)) + "\n})();"
    style = _asset("style.css")
    page = Template(_asset("page.html")).substitute(
        csp=_policy(script, style, live=bool(data.get("live"))),
        title=html.escape(str(data["title"])),
        style=style,
        script=script,
        data=embed(data),
    )
    return page.encode("utf-8", errors="backslashreplace")


def embed(data: Mapping[str, Any]) -> str:
    """Return JSON that can stand in a script element: no `<`, no line separators of Unicode's."""
    text = to_json(data)
    for character in "<\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def to_json(data: Mapping[str, Any]) -> str:
    """Return strict JSON: numbers that are not finite become null."""
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _policy(script: str, style: str, *, live: bool) -> str:
    connect = "; connect-src 'self'" if live else ""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        f"img-src data:; base-uri 'none'; form-action 'none'{connect}"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _asset(name: str) -> str:
    return (files("orchestrator.report") / "assets" / name).read_text(encoding="utf-8")
