"""A trained model's part of a checkpoint: DeepSpeed's files, each rank's generators, and a card.

Layout of the folder: `trainer.json` (the card), `latest`, `state/` (DeepSpeed), and
`rng_rank_<n>.json`; the policy's has `controls.json` besides. Committing the folder (temporary
name, fsync, manifest, rename) is the caller's: nothing here counts as saved until that is done.
"""

import json
from pathlib import Path

import deepspeed
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import ConfigError, Problem
from configs.lora import LoraConfig
from configs.schema import RunConfig
from trainer import rng
from trainer.safe_load import only_tensors

TAG = "state"
_CARD = "trainer.json"


class TrainerCard(BaseModel):
    """What a checkpoint was made by; loading refuses another layout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    world_size: int
    zero_stage: int
    dtype: str
    optimizer_steps: int
    lora: LoraConfig | None = None
    """Where there are adapters, they are all that was saved of the weights."""


def save(engine: deepspeed.DeepSpeedEngine, cfg: RunConfig, folder: Path) -> None:
    """Write every rank's part; returns when all ranks have written theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(
        str(folder),
        tag=TAG,
        client_state={},
        save_latest=True,
        exclude_frozen_parameters=cfg.trainer.lora is not None,
    )
    rng.write(folder / _rng_name(dist.get_rank()))
    if dist.get_rank() == 0:
        card = _card(cfg, optimizer_steps=int(engine.global_steps))
        (folder / _CARD).write_text(json.dumps(card.model_dump(mode="json")))
    dist.barrier()


def load(engine: deepspeed.DeepSpeedEngine, cfg: RunConfig, folder: Path) -> None:
    """Set the engine's whole state from `folder`; ConfigError where it does not fit this run."""
    saved = read_card(folder)
    wanted = _card(cfg, optimizer_steps=saved.optimizer_steps)
    if saved != wanted:
        raise ConfigError(
            Problem(
                where=str(folder),
                what=f"was saved by {_layout(saved)}, but this run has {_layout(wanted)}",
                fix="resume with the same actors.count, zero_stage, lora and dtype, or export the "
                "checkpoint and start a new run from it.",
            )
        )
    whole = cfg.trainer.lora is None
    with only_tensors():
        path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=whole)
    if path is None:
        raise ConfigError(Problem(where=str(folder / TAG), what="holds no DeepSpeed checkpoint"))
    rng.read(folder / _rng_name(dist.get_rank()))
    dist.barrier()


def read_card(folder: Path) -> TrainerCard:
    """Read a checkpoint's card; ConfigError naming the file if it is missing or damaged."""
    path = folder / _CARD
    try:
        return TrainerCard.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        raise ConfigError(
            Problem(
                where=str(path),
                what=f"is not a trainer checkpoint's card: {error}",
                fix="give the `trainer` folder of a committed checkpoint.",
            )
        ) from error


def _card(cfg: RunConfig, *, optimizer_steps: int) -> TrainerCard:
    return TrainerCard(
        world_size=dist.get_world_size(),
        zero_stage=cfg.trainer.zero_stage,
        dtype=cfg.model.dtype,
        optimizer_steps=optimizer_steps,
        lora=cfg.trainer.lora,
    )


def _layout(card: TrainerCard) -> str:
    adapter = "no adapter" if card.lora is None else f"an adapter ({card.lora})"
    return f"{card.world_size} ranks, ZeRO stage {card.zero_stage}, {card.dtype}, {adapter}"


def _rng_name(rank: int) -> str:
    return f"rng_rank_{rank}.json"
