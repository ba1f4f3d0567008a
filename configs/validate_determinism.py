"""What cannot be had together with `deterministic`."""

from collections.abc import Iterator

from configs.errors import Problem
from configs.schema import RunConfig


def check_determinism(cfg: RunConfig) -> Iterator[Problem]:
    """Yield each setting by which who comes first shows in the metrics."""
    if not cfg.deterministic:
        return
    fix = "Change it, or set deterministic to false."
    ahead = [s.name for s in cfg.sources if cfg.max_staleness(s)]
    if ahead:
        yield Problem(
            where="batch.max_staleness",
            what=f"lets {', '.join(ahead)} be sampled while training goes on, so that time decides "
            "which weights write a token, and deterministic is true",
            fix="Set it to 0 for all sources, or deterministic to false.",
        )
    if cfg.mix.max_wait_s is not None:
        yield Problem(
            where="mix.max_wait_s",
            what="lets time decide what a step is trained on, and deterministic is true",
            fix=fix,
        )
    if cfg.weight_sync.backend == "nccl":
        yield Problem(
            where="weight_sync.backend",
            what="is nccl, of which deterministic engines pin settings that the trainer does not "
            "have: a group of both would hang",
            fix="Set it to auto, or deterministic to false.",
        )
    for field in ("judges", "reward_models"):
        if getattr(cfg, field):
            yield Problem(
                where=field,
                what="are asked in batches that depend on who comes first, and deterministic is "
                "true",
                fix=fix,
            )
