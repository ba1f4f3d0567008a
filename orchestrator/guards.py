"""What follows from alarms: updates that are refused, smaller steps, the way back, the end.

All of it is a function of the rows of metrics.jsonl and eval.jsonl, as the monitors' board is: what
was done about an alarm stands in the row of its step (`guards/...`), so a resumed run, which shows
them again, goes on as if it had never ended.

A rollback takes weights, moments, schedule and controls back to the last good checkpoint, and
nothing else: the mix goes on with fresh tasks, steps and versions count on, and the ledger notes
which trained groups are no longer in the weights. A checkpoint is good once `guards.good_after`
steps came after it without an alarm.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from configs.schema import RunConfig
from configs.validate_guards import actions
from rewards.monitors.alarms import Alarm, Figures
from rewards.monitors.board import MonitorBoard, Row
from rewards.monitors.replay import go_back, replay
from rewards.monitors.sudden import any_skipped
from rollouts.types import UpdateBounds

_REFUSED = ("skip", "rollback", "stop")
"""Actions with which an update beyond its guard's limit is not applied."""
_SHRUNK, _ROLLBACKS, _ALARMED = "guards/shrunk_for", "guards/rollbacks", "guards/alarmed"
_STUCK = "guards/stuck"


class Guards:
    """The monitors of a run, and what is done about their alarms."""

    def __init__(self, cfg: RunConfig):
        self._cfg, self._run = cfg, cfg.guards
        self._board = MonitorBoard(cfg)
        self._shrunk_for = 0
        self._rollbacks = 0
        self._stuck = False
        self._skips = 0
        self._alarmed: list[int] = []
        self._step = 0

    def take_up(self, steps: Sequence[Row], evaluations: Sequence[Row]) -> tuple[Alarm, ...]:
        """Take up what an earlier attempt left; return the alarms that it raised and cleared."""
        for row in steps:
            self._remember(row)
        alarms = tuple(replay(self._board, steps, evaluations))
        # An evaluation's alarm comes after the row of its step, which cannot tell of it.
        self._shrink([a for a in alarms if a.step == self._step])
        return alarms

    @property
    def standing(self) -> tuple[Alarm, ...]:
        """The alarms that are raised now."""
        return self._board.standing

    def bounds(self) -> UpdateBounds:
        """Return what the next step's updates may be."""
        run, limits = self._run, self._board.limits()

        def limit(name: str) -> float:
            refused = getattr(run, name).action in _REFUSED
            return limits.get(name, math.inf) if refused else math.inf

        return UpdateBounds(
            loss=limit("loss"),
            grad_norm=limit("grad_norm"),
            skip_non_finite=run.non_finite.action != "stop",
            lr_factor=run.shrink_factor if self._shrunk_for else 1.0,
        )

    def trained(self, row: Row) -> tuple[Alarm, ...]:
        """Take a trained step's figures; return what they raise and clear."""
        self._step = int(str(row["step"]))
        alarms = self._board.trained(row)
        self._shrunk_for = max(0, self._shrunk_for - 1)
        self._shrink(alarms)
        self._skips = self._skips + 1 if any_skipped(Figures(row, "")) else 0
        if self._is_alarm(alarms):
            self._alarmed.append(self._step)
        return alarms

    def evaluated(self, row: Row) -> tuple[Alarm, ...]:
        """Take a row of eval.jsonl; return what it raises and clears."""
        alarms = self._board.evaluated(row)
        self._shrink(alarms)
        return alarms

    def wants_rollback(self) -> bool:
        """Return whether an alarm stands that is to be answered by a rollback, and one is left."""
        return bool(self._unanswered()) and self._rollbacks < self._run.max_rollbacks

    def rolled_back(
        self, to: int, steps: Sequence[Row], evaluations: Sequence[Row]
    ) -> tuple[Alarm, ...]:
        """Tell that the weights are those of step `to` again; return the alarms that this clears.

        Args:
            steps: all rows of metrics.jsonl before the step that is over now.
        """
        self._rollbacks += 1
        return go_back(self._board, self._step, to, steps, evaluations)

    def cannot_roll_back(self) -> None:
        """Tell that no checkpoint is known to be good, while a rollback is wanted."""
        self._stuck = True

    def metrics(self) -> dict[str, float]:
        """Return the alarms as numbers, and what the next attempt must know."""
        return {
            **self._board.metrics(),
            _ALARMED: float(bool(self._alarmed) and self._alarmed[-1] == self._step),
            _SHRUNK: float(self._shrunk_for),
            _ROLLBACKS: float(self._rollbacks),
            _STUCK: float(self._stuck),
        }

    def good(self, checkpoints: Iterable[int]) -> int | None:
        """Return the newest of the checkpoints' steps that is good; None where none is."""
        after = self._run.good_after
        good = (
            c for c in checkpoints if c + after <= self._step and not self._alarms(c, c + after)
        )
        return max(good, default=None)

    def keep(self, checkpoints: Iterable[int]) -> frozenset[int]:
        """Return the checkpoints that a rollback may need: the good one, and the one that becomes
        good next unless something is seen."""
        if not actions(self._cfg, "rollback"):
            return frozenset()
        steps = sorted(checkpoints)
        good = self.good(steps)
        later = (c for c in steps if (good is None or c > good) and not self._alarms(c, self._step))
        return frozenset(c for c in (good, next(later, None)) if c is not None)

    def ends(self) -> str | None:
        """Say why the run should end here, when it should."""
        standing = self._board.standing
        if fatal := [a for a in standing if a.action == "stop"]:
            return (
                f"{_say(fatal)}. The run ends here; to go on all the same, resume with "
                f"{_fields(fatal)} set to warn"
            )
        spent = self._rollbacks >= self._run.max_rollbacks
        if (unanswered := self._unanswered()) and (spent or self._stuck):
            why = (
                f"guards.max_rollbacks={self._run.max_rollbacks} were made"
                if spent
                else "no checkpoint is known to be good"
            )
            return (
                f"{_say(unanswered)}. A rollback is wanted, but {why}. The run ends here; to go on "
                f"all the same, resume with {_fields(unanswered)} set to warn"
            )
        if self._skips > self._run.max_skips:
            return (
                f"updates of {self._skips} steps in a row were skipped, more than "
                f"guards.max_skips={self._run.max_skips}: what was unusual is so no more. The run "
                f"ends here: {_say(standing)}"
            )
        return None

    def _shrink(self, alarms: Sequence[Alarm]) -> None:
        if any(a.event == "raised" and a.action == "shrink" for a in alarms):
            self._shrunk_for = self._run.shrink_steps

    def _unanswered(self) -> list[Alarm]:
        return [a for a in self._board.standing if a.action == "rollback"]

    def _is_alarm(self, alarms: Sequence[Alarm]) -> bool:
        """Whether a step speaks against the checkpoints before it: any guard's alarm does, and a
        monitor's that is to do more than warn."""
        heard = (*alarms, *self._board.standing)
        return any(
            a.event == "raised" and (a.monitor.startswith("guards/") or a.action != "warn")
            for a in heard
        )

    def _alarms(self, after: int, until: int) -> bool:
        return any(after < step <= until for step in self._alarmed)

    def _remember(self, row: Row) -> None:
        """Take from a row what was done after its step."""
        figures = Figures(row, "")
        self._step = int(str(row["step"]))
        self._shrunk_for = int(figures.get(_SHRUNK) or 0)
        self._rollbacks = int(figures.get(_ROLLBACKS) or 0)
        self._stuck = bool(figures.get(_STUCK))
        self._skips = self._skips + 1 if any_skipped(figures) else 0
        if figures.get(_ALARMED):
            self._alarmed.append(self._step)


def _say(alarms: Iterable[Alarm]) -> str:
    return "; ".join(map(str, alarms))


def _fields(alarms: Iterable[Alarm]) -> str:
    return ", ".join(f"{field}.action" for field in _unique(a.field for a in alarms))


def _unique(names: Iterable[str]) -> Iterator[str]:
    yield from dict.fromkeys(names)
