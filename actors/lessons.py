"""The lesson actor: encodes conversations and puts them into the store, so that no token passes
the driver. transformers is imported when it starts: the driver imports this module too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from actors.heartbeat import Heartbeat, beat
from actors.rollout_render import load_tokenizer
from configs.engines import ModelConfig
from configs.errors import ConfigError, Problem
from configs.redact import guard_output
from rollouts.conversations import Lesson, Preference
from rollouts.types import SampleHandle, TrainingSample

if TYPE_CHECKING:
    from trainer.conversations import ConversationEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRows:
    """What some rows became."""

    samples: tuple[SampleHandle, ...]
    too_long: tuple[str, ...]
    """Rows, by name, with a sample of more than `max_model_len` tokens, which is left out."""


class LessonActor:
    """Encodes by the tokenizer of the model. Heartbeats run in a thread of their own."""

    def __init__(self, model: ModelConfig, too_long: str):
        guard_output()
        self._model, self._too_long = model, too_long
        self._encoder: ConversationEncoder | None = None
        self._encoded = 0

    def start(self) -> Heartbeat:
        """Load the tokenizer.

        Raises:
            ConfigError: there is none, or it has no chat template.
        """
        from trainer.conversations import ConversationEncoder

        self._encoder = ConversationEncoder(load_tokenizer(self._model), self._model.path)
        return beat(0)

    def encode(self, rows: Sequence[Lesson]) -> EncodedRows:
        """Encode rows, in order.

        Raises:
            ConfigError: a row cannot be learnt from, or is too long where that is refused.
        """
        samples: list[tuple[TrainingSample, ...]] = []
        too_long: list[str] = []
        limit = self._model.max_model_len
        for row in rows:
            for unit in self._units(row):
                longest = max(len(s.token_ids) for s in unit)
                if longest <= limit:
                    samples.append(unit)
                elif self._too_long == "refuse":
                    what = f"has {longest} tokens, more than model.max_model_len={limit}"
                    fix = "Raise it, shorten the row, or set data.too_long to drop."
                    raise ConfigError(Problem(where=row.name, what=what, fix=fix))
                else:
                    too_long.append(row.name)
        self._encoded += len(rows)
        ref = ray.put(tuple(samples))
        handles = tuple(
            SampleHandle(
                ref=ref,
                row=i,
                num_tokens=sum(len(s.token_ids) for s in unit),
                num_loss_tokens=sum(int(s.loss_mask.sum()) for s in unit),
            )
            for i, unit in enumerate(samples)
        )
        return EncodedRows(samples=handles, too_long=tuple(dict.fromkeys(too_long)))

    def _units(self, row: Lesson) -> list[tuple[TrainingSample, ...]]:
        """Return what of a row stays together: single samples, or a pair."""
        from trainer.conversations import UnusableConversation, training_sample

        assert self._encoder is not None, "start() was not called"
        try:
            if isinstance(row, Preference):
                sides = [self._encoder.whole(m) for m in (row.chosen, row.rejected)]
                return [
                    tuple(training_sample(e, name=row.name, index=i) for i, e in enumerate(sides))
                ]
            found = self._encoder.encode(row)
        except UnusableConversation as error:
            raise ConfigError(Problem(where=row.name, what=str(error))) from error
        return [(training_sample(e, name=row.name, index=i),) for i, e in enumerate(found)]

    @ray.method(concurrency_group="control")
    def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives."""
        return beat(self._encoded)
