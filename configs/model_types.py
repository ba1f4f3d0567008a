"""Kinds of models that the trainer refuses, or trains only on padded rows; told from config.json.

What is not listed here is still checked where it is loaded (`trainer.packing_check`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from configs.errors import Problem
from configs.model_files import find_model_folder
from configs.schema import RunConfig

PADDED_ONLY = frozenset(
    {
        "bamba",
        "biogpt",
        "bloom",
        "falcon",
        "falcon_h1",
        "falcon_mamba",
        "gpt_neox_japanese",
        "granitemoehybrid",
        "jamba",
        "lfm2",
        "mamba",
        "mamba2",
        "minimax",
        "mpt",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5_text",
        "qwen3_next",
        "recurrent_gemma",
        "rwkv",
        "xlstm",
        "zamba",
        "zamba2",
    }
)
"""`model_type`s whose layers see past the start of a segment in a packed row: recurrent states,
convolutions, linear attention, ALiBi, positions counted from the mask."""

_EXPERTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
)
"""Keys of config.json by which a mixture of experts is told."""


def check_model_type(cfg: RunConfig) -> Iterator[Problem]:
    """Yield why the policy's kind of model cannot be trained as the recipe says."""
    folder = find_model_folder(cfg.model.path)
    found = None if folder is None else _read(folder)
    if found is None:
        return
    kind = str(found.get("model_type", "unknown"))
    experts = next((k for k in _EXPERTS if isinstance(n := found.get(k), int) and n > 1), None)
    if experts is not None:
        yield Problem(
            where="model.path",
            what=f"{cfg.model.path} (model_type {kind}, {experts} {found[experts]}) is a mixture "
            "of experts: the trainer would route tokens to other experts than the sampler did, "
            "and there is no router replay; nor do engines load its fused experts by name",
            fix="Take a dense model.",
        )
    if cfg.batch.packing == "packed" and kind in PADDED_ONLY:
        yield Problem(
            where="batch.packing",
            what=f"is `packed`, but layers of a {kind} model see past the start of a segment",
            fix="Set it to padded.",
        )


def model_type(folder: Path) -> str | None:
    """Return the `model_type` that a model's config.json names; None without one."""
    kind = (_read(folder) or {}).get("model_type")
    return kind if isinstance(kind, str) else None


def _read(folder: Path) -> dict[str, object] | None:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # `check_path` says what is missing
    return cast(dict[str, object], found) if isinstance(found, dict) else None
