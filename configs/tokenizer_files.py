"""Whether two model folders give the same ids to the same tokens; read from files alone."""

import json
from pathlib import Path
from typing import Any, cast

_WHOLE = (("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",))
"""Vocabularies of folders without a tokenizer.json; compared as files."""


def tokenizer_difference(ours: Path, theirs: Path, *, ends: bool = True) -> str | None:
    """Say in which way the tokenizer in `theirs` gives other ids than that in `ours`; None where
    it does not. How text is cut up is not compared: ids are.

    Args:
        ends: whether both must end an answer by the same token.
    """
    if (found := _vocabulary_difference(ours, theirs)) is not None:
        return found
    mine, other = _end_token(ours), _end_token(theirs)
    if ends and None not in (mine, other) and mine != other:
        return f"its end token is {other!r}, and the policy's is {mine!r}"
    size = _vocab_size(theirs)
    most = max(_tokens(ours).values(), default=0) if size is not None else 0
    if size is not None and most >= size:
        return f"its embedding has {size} rows, and the policy's tokens go up to id {most}"
    return None


def _vocabulary_difference(ours: Path, theirs: Path) -> str | None:
    pair = [folder / "tokenizer.json" for folder in (ours, theirs)]
    if all(path.is_file() for path in pair):
        if pair[0].read_bytes() == pair[1].read_bytes():
            return None
        mine, other = _tokens(ours), _tokens(theirs)
        odd = [t for t in {**mine, **other} if mine.get(t) != other.get(t)]
        if not odd:
            return None
        token = odd[0]
        return (
            f"{len(odd)} of its {len(other)} tokens have other ids than the policy's, e.g. "
            f"{token!r}: {_id(mine, token)} there, {_id(other, token)} here"
        )
    for names in _WHOLE:
        files = [[folder / name for name in names] for folder in (ours, theirs)]
        if all(path.is_file() for side in files for path in side):
            same = all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))
            return None if same else f"its {' and '.join(names)} differ from the policy's"
    return "its tokenizer cannot be compared with the policy's: only one of them has tokenizer.json"


def _id(tokens: dict[str, int], token: str) -> str:
    return str(tokens[token]) if token in tokens else "none"


def _tokens(folder: Path) -> dict[str, int]:
    """Return token -> id of a tokenizer.json, added tokens included; empty without one."""
    data = _read(folder / "tokenizer.json")
    model: Any = data.get("model") or {}
    vocab: Any = model.get("vocab") or {}
    if isinstance(vocab, list):  # Unigram: [token, score] by id
        pieces = cast("list[list[Any]]", vocab)
        tokens = {str(piece[0]): i for i, piece in enumerate(pieces)}
    else:
        tokens = {str(t): int(i) for t, i in cast("dict[str, int]", vocab).items()}
    added = cast("list[dict[str, Any]]", data.get("added_tokens") or [])
    return {**tokens, **{str(t["content"]): int(t["id"]) for t in added}}


def _end_token(folder: Path) -> str | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read(folder / name).get("eos_token")
        if isinstance(token, dict):
            token = cast("dict[str, Any]", token).get("content")
        if isinstance(token, str):
            return token
    return None


def _vocab_size(folder: Path) -> int | None:
    size = _read(folder / "config.json").get("vocab_size")
    return size if isinstance(size, int) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        data: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}
