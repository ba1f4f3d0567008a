"""The trainer's part of a checkpoint: DeepSpeed's files, each rank's generators, and a card.

Layout of the folder: `trainer.json` (the card), `controls.json`, `latest`, `state/` (DeepSpeed),
and `rng_rank_<n>.json`. Committing the folder (temporary name, fsync, manifest, rename) is the
caller's: nothing here counts as saved until that is done.
"""

import json
from pathlib import Path

import deepspeed
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import ConfigError, Problem
from configs.schema import RunConfig
from trainer import rng
from trainer.controls import Controls
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


def save(
    engine: deepspeed.DeepSpeedEngine, cfg: RunConfig, folder: Path, controls: Controls
) -> None:
    """Write every rank's part; returns when all ranks have written theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(folder), tag=TAG, client_state={}, save_latest=True)
    rng.write(folder / _rng_name(dist.get_rank()))
    if dist.get_rank() == 0:
        card = _card(cfg, optimizer_steps=int(engine.global_steps))
        (folder / _CARD).write_text(json.dumps(card.model_dump(mode="json")))
        controls.save(folder)
    dist.barrier()


def load(engine: deepspeed.DeepSpeedEngine, cfg: RunConfig, folder: Path) -> Controls:
    """Set the engine's whole state from `folder`, and return the controls; ConfigError where it
    does not fit this run."""
    saved = read_card(folder)
    wanted = _card(cfg, optimizer_steps=saved.optimizer_steps)
    if saved != wanted:
        raise ConfigError(
            Problem(
                where=str(folder),
                what=f"was saved by {_layout(saved)}, but this run has {_layout(wanted)}",
                fix="resume with the same trainer.actors.count, zero_stage and dtype, or export "
                "the checkpoint and start a new run from it.",
            )
        )
    with only_tensors():
        path, _ = engine.load_checkpoint(str(folder), tag=TAG)
    if path is None:
        raise ConfigError(Problem(where=str(folder / TAG), what="holds no DeepSpeed checkpoint"))
    rng.read(folder / _rng_name(dist.get_rank()))
    dist.barrier()
    return Controls.load(folder)


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
    )


def _layout(card: TrainerCard) -> str:
    return f"{card.world_size} ranks, ZeRO stage {card.zero_stage}, {card.dtype}"


def _rng_name(rank: int) -> str:
    return f"rng_rank_{rank}.json"
