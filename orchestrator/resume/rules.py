"""What of a recipe may change between two attempts of one run."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from configs.engines import RolloutConfig
from configs.errors import Problem
from configs.judges import JudgeConfig
from configs.schema import RunConfig, dump
from configs.sft import AnyRecipe

_FREE = (
    "num_steps",
    "ray_address",
    "deterministic",
    "mix.max_wait_s",
    "batch.max_attempts",
    "batch.max_failed_groups",
    "batch.max_tokens_per_microbatch",
    "rollout",
    "reward",
    "reference.actors",
    "trainer.actors.cpus",
    "trainer.actors.gpus",
    "trainer.actors.labels",
    "trainer.actors.colocate_with",
    "trainer.gradient_checkpointing",
    "trainer.logprob_chunk",
    "trainer.collective_timeout_s",
    "critic.actors.cpus",
    "critic.actors.gpus",
    "critic.actors.labels",
    "critic.actors.colocate_with",
    "critic.gradient_checkpointing",
    "weight_sync",
    "eval",
    "checkpoint",
    "monitors",
    "guards",
    "logging",
    "replay",
    "health",
)
"""How and how long it runs, where it runs, and what is written: all else says what is learned."""
_FREE_OF_JUDGE = (
    "endpoint.base_url",
    "endpoint.api_key_env",
    *(f"engines.{field}" for field in RolloutConfig.model_fields),
    *(field for field in JudgeConfig.model_fields if field not in ("endpoint", "engines")),
)
"""Of each judge: which model it is, and how it is asked, says what is learned."""
_FREE_OF_TEACHER = ("actors", "max_tokens_per_batch", "timeout_s")
_FREE_OF_LESSONS = ("epochs", "data.jsonl", "data.parquet", "data.held_out_file", "data.too_long")
"""Paths among them: the rows' content is compared by hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """A field that differs from the last attempt's."""

    field: str
    before: JsonValue
    after: JsonValue
    allowed: bool
    """Whether the run stays the same run."""

    def __str__(self) -> str:
        return f"{self.field}: {_show(self.before)} -> {_show(self.after)}"


def changed_fields(
    before: AnyRecipe, after: AnyRecipe, *, moved: Collection[str] = ()
) -> tuple[FieldChange, ...]:
    """List the fields that differ, in the recipe's order.

    Args:
        moved: fields that name files whose content is what it was, wherever it lies now.
    """
    old, new = _flatten(dump(before), ""), _flatten(dump(after), "")
    named = _free_by_name(before) if isinstance(before, RunConfig) else _FREE_OF_LESSONS
    free = (*_FREE, *named, *moved)
    return tuple(
        FieldChange(
            field=field,
            before=old.get(field),
            after=new.get(field),
            allowed=any(field == f or field.startswith(f"{f}.") for f in free),
        )
        for field in dict.fromkeys([*old, *new])
        if old.get(field) != new.get(field)
    )


def _free_by_name(cfg: RunConfig) -> tuple[str, ...]:
    """Return what is free of each source, judge, reward model and teacher."""
    own = ("eval", "watch", "gold.fraction")
    return (
        *(f"sources.{s.name}.{field}" for s in cfg.sources for field in own),
        *(f"judges.{name}.{field}" for name in cfg.judges for field in _FREE_OF_JUDGE),
        *(f"reward_models.{name}.actors" for name in cfg.reward_models),
        *(f"teachers.{name}.{field}" for name in cfg.teachers for field in _FREE_OF_TEACHER),
    )


def forbidden_changes(changes: Sequence[FieldChange], run_dir: Path) -> list[Problem]:
    """Return a problem for each change that would make it another run."""
    fix = f"Put the old value back (see {run_dir}/config.yaml), or give another --run-dir."
    return [
        Problem(
            where=change.field,
            what=f"was {_show(change.before)} when this run began, is {_show(change.after)}; "
            "a resumed run keeps it",
            fix=fix,
        )
        for change in changes
        if not change.allowed
    ]


def _flatten(value: JsonValue, prefix: str) -> dict[str, JsonValue]:
    """Flatten to leaves; items of a list by their name where they have one."""
    if isinstance(value, dict) and value:
        pairs = [(key, below) for key, below in value.items()]
    elif isinstance(value, list) and value:
        pairs = [(_name(item, i), item) for i, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, JsonValue] = {}
    for key, below in pairs:
        flat.update(_flatten(below, f"{prefix}.{key}" if prefix else key))
    return flat


def _name(item: JsonValue, index: int) -> str:
    name = item.get("name") if isinstance(item, dict) else None
    return name if isinstance(name, str) else str(index)


def _show(value: JsonValue) -> str:
    return "empty" if value is None else str(value)
