"""Coefficients that follow a target over the run: the KL's scale and the entropy's coefficient.

They move once a training step, by numbers that are the same on every rank, and travel in the
checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from configs.algorithm import AlgorithmConfig
from configs.errors import ConfigError, Problem
from trainer.kl import kl_estimate
from trainer.loss import LossInputs
from trainer.metrics import Mean

_FILE = "controls.json"
_MAX_KL_ERROR = 0.2


@dataclass(slots=True)
class Controls:
    """What the next training step uses."""

    entropy_coef: float
    kl_scale: float = 1.0
    """Factor on every source's KL coefficient."""
    entropy_low: bool = True
    """Whether entropy was at most its target, so that the bonus acts."""

    @staticmethod
    def start(cfg: AlgorithmConfig) -> "Controls":
        """Return the state before the first step."""
        return Controls(entropy_coef=cfg.entropy.coef)

    def bonus(self, cfg: AlgorithmConfig) -> float:
        """Return the entropy coefficient that acts now."""
        return self.entropy_coef if cfg.entropy.target is None or self.entropy_low else 0.0

    def follow(self, cfg: AlgorithmConfig, metrics: Mapping[str, float]) -> None:
        """Move after a step.

        KL: scale *= 1 + gain * clip(kl / target - 1, -0.2, 0.2) (arXiv:1909.08593, section 2.2),
        kl being that of the tokens that have a coefficient.
        Entropy: coef += step where entropy is below its target, -= step else, never below 0; the
        bonus acts only while entropy is at most the target (arXiv:2505.22312, section 4).
        """
        kl = metrics.get("kl_held")
        if cfg.kl.target is not None and kl is not None:
            error = max(-_MAX_KL_ERROR, min(_MAX_KL_ERROR, kl / cfg.kl.target - 1))
            self.kl_scale *= 1 + cfg.kl.gain * error
        entropy = metrics.get("entropy")
        if cfg.entropy.target is not None and entropy is not None:
            self.entropy_low = entropy <= cfg.entropy.target
            step = cfg.entropy.step if self.entropy_low else -cfg.entropy.step
            self.entropy_coef = max(0.0, self.entropy_coef + step)

    @staticmethod
    def followed(cfg: AlgorithmConfig, x: LossInputs) -> dict[str, Mean]:
        """Return what `follow` needs of a micro-batch, whatever the loss itself shows."""
        found: dict[str, Mean] = {}
        if cfg.kl.target is not None and x.ref_logprobs is not None:
            kl = kl_estimate(x.policy_logprobs, x.ref_logprobs, x.kl_estimator)
            found["kl_held"] = Mean(kl, x.loss_mask & (x.kl_coef > 0))
        if cfg.entropy.target is not None:
            found["entropy"] = Mean(x.entropy, x.loss_mask)
        return found

    def save(self, folder: Path) -> None:
        """Write into a checkpoint's folder."""
        (folder / _FILE).write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(folder: Path) -> "Controls":
        """Read what `save` wrote; ConfigError naming the file if it is missing or damaged."""
        path = folder / _FILE
        try:
            return _STATE.validate_json(path.read_text())
        except (OSError, ValueError) as error:
            gone = isinstance(error, FileNotFoundError)
            fix = "resume from another checkpoint, or export this one and start a new run from it."
            what = "is missing from the checkpoint" if gone else f"cannot be read: {error}"
            raise ConfigError(Problem(where=str(path), what=what, fix=fix)) from error


_STATE = TypeAdapter(Controls)
