"""Cuts secrets out of whatever is written or shown: the one place that logs, errors, records and
trackers pass through.

A secret is known by its value, where this process can see it (its environment, the credential files
of Hugging Face, W&B and Ray), or by its shape, where it cannot.
"""

import json
import logging
import netrc
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast
from urllib.parse import quote

T = TypeVar("T")

HIDDEN = "[secret]"
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:(?:API|ACCESS|SECRET|PRIVATE|AUTH)?_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE"
    r"|CREDENTIALS?|PAT)(?:_\d+)?$",
    re.IGNORECASE,
)
"""Names of environment variables whose values are secrets."""
_NAMED: set[str] = set()
"""Variables that hold secrets by a recipe's word."""
_MIN_LENGTH = 8
"""A shorter value is no secret worth the name, and would cut up ordinary words."""

SHAPES: Mapping[str, re.Pattern[str]] = {
    "a user and password in an address": re.compile(r"(?<=://)[^\s/@:\"']+:[^\s/@\"']+(?=@)"),
    "a token in an address": re.compile(r"(?<=://)[\w%-]{16,}(?=@)"),
    "an authorization header": re.compile(
        r"(?i)(?<=authorization: )\S+ \S+|(?<=bearer )[\w.~+/=-]{16,}|(?<=basic )[\w+/]{16,}=*"
    ),
    "an OpenAI or Anthropic key": re.compile(r"\bsk-[\w-]{16,}"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    "a GitLab token": re.compile(r"\bglpat-[\w-]{16,}"),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Google key": re.compile(r"\bAIza[\w-]{35}\b"),
    "a Slack token": re.compile(r"\bxox[abprs]-[\w-]{10,}"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"),
    "a private key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*)", re.DOTALL
    ),
}
"""What a secret looks like -> its pattern."""


def is_secret_name(name: str) -> bool:
    """Return whether a variable or field of that name would hold a secret."""
    return _SECRET_NAME.search(name) is not None


def hide_variable(name: str) -> None:
    """Take the value of this environment variable for a secret, whatever its name."""
    _NAMED.add(name)


def known_secrets() -> dict[str, str]:
    """Return the secrets that this process can see: value -> where it is from, longest first."""
    found: dict[str, str] = {}
    for where, value in _visible():
        if len(value) >= _MIN_LENGTH:
            found.setdefault(value, where)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def redact(text: str) -> str:
    """Return a text without the secrets that are known here, and without what looks like one."""
    text = redact_known(text)
    for shape in SHAPES.values():
        text = shape.sub(HIDDEN, text)
    return text


def redact_known(text: str) -> str:
    """Return a text without the secrets that this process knows; for records, which must not
    change where a model only wrote something that looks like a key."""
    for value in known_secrets():
        for form in {value, json.dumps(value)[1:-1], quote(value, safe="")}:
            text = text.replace(form, HIDDEN)
    return text


def redact_data(data: T) -> T:
    """Return JSON-like data with every text in it redacted, keys too."""
    return cast(T, _redacted(data))


def _redacted(data: object) -> object:
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, Mapping):
        items = cast(Mapping[str, object], data).items()
        return {redact(key): _redacted(value) for key, value in items}
    if isinstance(data, list | tuple):
        return [_redacted(item) for item in cast("list[object]", data)]
    return data


def guard_output() -> None:
    """Have this process write neither log lines without a handler nor its last traceback with
    secrets in them. Call at its start."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(RedactingFormatter())
    sys.excepthook = _print_redacted


def _print_redacted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


class RedactingFormatter(logging.Formatter):
    """Formats a record, its traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the redacted line."""
        return redact(super().format(record))


def _visible() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if name in _NAMED or is_secret_name(name):
            yield name, value.strip()
    home = Path(os.environ.get("HOME", "~")).expanduser()
    hub = Path(os.environ.get("HF_HOME", str(home / ".cache/huggingface")))
    for variable, default in (
        ("HF_TOKEN_PATH", hub / "token"),
        ("RAY_AUTH_TOKEN_PATH", home / ".ray/auth_token"),
    ):
        path = Path(os.environ.get(variable, str(default))).expanduser()
        yield str(path), _content(*_state(path)).strip()
    passwords = Path(os.environ.get("NETRC", str(home / ".netrc")))
    for password in _passwords(*_state(passwords)):
        yield str(passwords), password


def _state(path: Path) -> tuple[Path, int]:
    """Return a file and when it was changed; -1 where it cannot be seen."""
    try:
        return path, path.stat().st_mtime_ns
    except OSError:
        return path, -1


@lru_cache(maxsize=16)
def _content(path: Path, changed: int) -> str:
    try:
        return path.read_text(encoding="utf-8") if changed >= 0 else ""
    except (OSError, UnicodeDecodeError):
        return ""


@lru_cache(maxsize=4)
def _passwords(path: Path, changed: int) -> tuple[str, ...]:
    try:
        hosts = netrc.netrc(str(path)).hosts.values() if changed >= 0 else ()
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return ()
    return tuple(password for _, _, password in hosts if password)
