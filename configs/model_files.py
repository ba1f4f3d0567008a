"""What a model's folder says about the model, without loading it: no torch, no transformers."""

import json
import os
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from configs.errors import Problem

_MAX_HEADER_BYTES = 100_000_000
"""What safetensors itself allows."""
_LLAMA_LIKE = re.compile(r"^(Llama|Mistral|Qwen2|Qwen3)ForCausalLM$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a causal LM."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int | None
    tied: bool
    """Whether the output head is the embedding."""
    params: int | None
    """Parameters, tied ones once; None where neither weights nor a known formula tells."""
    largest_layer_params: int | None
    """Parameters of the largest module that holds some directly, as DeepSpeed counts it."""
    counted_from: str
    """`safetensors headers`, `config.json`, or why params is None."""


def find_model_folder(path: str) -> Path | None:
    """Return the local folder of a model: the path itself, or the hub cache's newest snapshot."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    snapshots = hub / f"models--{path.replace('/', '--')}" / "snapshots"
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) or not snapshots.is_dir():
        return None
    found = [s for s in snapshots.iterdir() if (s / "config.json").is_file()]
    return max(found, key=lambda s: s.stat().st_mtime, default=None)


def read_model_shape(folder: Path) -> ModelShape | None:
    """Read sizes from config.json, and parameter counts from the weights' headers.

    Returns None where config.json is missing or describes no plain causal LM.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        sizes = {
            "layers": int(config["num_hidden_layers"]),
            "hidden": hidden,
            "intermediate": int(config.get("intermediate_size") or 4 * hidden),
            "heads": heads,
            "kv_heads": int(config.get("num_key_value_heads") or heads),
            "head_dim": int(config.get("head_dim") or hidden // heads),
            "vocab": int(config["vocab_size"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    architecture = str((config.get("architectures") or ["unknown"])[0])
    tied = bool(config.get("tie_word_embeddings", False))
    params, largest, counted = _count(folder, architecture, sizes, tied)
    return ModelShape(
        **sizes,
        architecture=architecture,
        max_positions=config.get("max_position_embeddings"),
        tied=tied,
        params=params,
        largest_layer_params=largest,
        counted_from=counted,
    )


def _count(
    folder: Path, architecture: str, sizes: dict[str, int], tied: bool
) -> tuple[int | None, int | None, str]:
    tensors = tensor_sizes(folder)
    if tensors:
        own = {n: s for n, s in tensors.items() if not (tied and n == "lm_head.weight")}
        modules: dict[str, int] = {}
        for name, size in own.items():
            module = name.rpartition(".")[0]
            modules[module] = modules.get(module, 0) + size
        return sum(own.values()), max(modules.values()), "safetensors headers"
    if _LLAMA_LIKE.match(architecture):
        return *_formula(architecture, sizes, tied), "config.json"
    return None, None, f"unknown: no safetensors there, and no formula for {architecture}"


def tensor_sizes(folder: Path) -> dict[str, int]:
    """Return the number of elements of each tensor in the folder's safetensors files."""
    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, meta in read_safetensors_header(file).items():
            if name != "__metadata__":
                sizes[name] = prod(meta["shape"])
    return sizes


def read_safetensors_header(file: Path) -> dict[str, Any]:
    """Return the JSON header; empty where the file has none (for example a Git LFS pointer)."""
    with file.open("rb") as f:
        start = f.read(8)
        if len(start) < 8:
            return {}
        (length,) = struct.unpack("<Q", start)
        if length > min(_MAX_HEADER_BYTES, file.stat().st_size):
            return {}
        try:
            return json.loads(f.read(length))
        except ValueError:
            return {}


def _formula(architecture: str, sizes: dict[str, int], tied: bool) -> tuple[int, int]:
    """Parameters and largest module of a Llama-like model: attention, gated MLP, two norms."""
    h, inter, d = sizes["hidden"], sizes["intermediate"], sizes["head_dim"]
    q, kv = sizes["heads"] * d, sizes["kv_heads"] * d
    attention = h * q + 2 * h * kv + q * h
    if architecture.startswith("Qwen2"):
        attention += q + 2 * kv  # biases of q, k and v
    if architecture.startswith("Qwen3"):
        attention += 2 * d  # norms of q and k
    embedding = sizes["vocab"] * h
    layer = attention + 3 * h * inter + 2 * h
    total = sizes["layers"] * layer + h + embedding * (1 if tied else 2)
    return total, max(embedding, h * inter, h * q)


def check_model_folder(folder: Path, where: str) -> list[Problem]:
    """Name what a local model folder lacks: config, weights, tokenizer, chat template."""
    problems: list[Problem] = []

    def lacks(what: str, fix: str) -> None:
        problems.append(Problem(where=where, what=f"{folder} has no {what}", fix=fix))

    if not (folder / "config.json").is_file():
        lacks("config.json", "Point it at a Hugging Face model folder.")
    if not any(folder.glob("*.safetensors")):
        pickled = any(any(folder.glob(kind)) for kind in ("*.bin", "*.pt", "*.pth"))
        lacks(
            "weights (*.safetensors)" + (", and pickled ones are not read" if pickled else ""),
            "Load them where you trust them, and `save_pretrained` them as safetensors."
            if pickled
            else "Download or save the model's weights there.",
        )
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        lacks("tokenizer", "Save one there with `tokenizer.save_pretrained(FOLDER)`.")
    elif not _has_chat_template(folder):
        lacks(
            "chat template",
            "Put a chat_template.jinja there, or use the instruct variant of the model.",
        )
    return problems


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        config: JsonValue = json.loads(
            (folder / "tokenizer_config.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))
