"""What rollouts look like: their length, answers, repetition and format."""

from configs.monitors import (
    AnswersMonitorConfig,
    FormatMonitorConfig,
    LengthMonitorConfig,
    MonitorsConfig,
    RepetitionMonitorConfig,
)
from rewards.monitors.alarms import Figures, Finding, Looked, Monitor
from rewards.monitors.evidence import Change, Series


class LengthMonitor(Monitor):
    """Sees longer answers of the same task earn more, while length and reward grow."""

    def __init__(self, run: MonitorsConfig, cfg: LengthMonitorConfig):
        self._run, self._cfg = run, cfg
        self._correlation, self._length, self._reward = (Series(run.window) for _ in range(3))

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's mean length, mean reward, and their correlation within groups."""
        length, reward = figures.get("all/length/mean"), figures.get("all/reward/mean")
        correlation = figures.get("all/length/reward_correlation")
        if correlation is not None:
            self._correlation.add(correlation)
        if length is None or reward is None:
            return None
        self._length.add(length)
        self._reward.add(reward)
        longer, better = self._length.since_start(), self._reward.since_start()
        if longer is None or better is None or not self._correlation.full:
            return None
        least, sigmas = self._cfg.growth * longer.before, self._run.sigmas
        bound = max(self._cfg.correlation, sigmas / 2 * self._correlation.stderr)
        earns = self._correlation.now > bound
        if not (earns and longer.exceeds(least, sigmas) and better.exceeds(0, sigmas)):
            return Looked()
        text = (
            f"length grew from {longer.before:.1f} to {longer.now:.1f} tokens while the reward "
            f"rose by {better.size:.3f}; within groups their correlation is "
            f"{self._correlation.now:.2f}"
        )
        found = {
            "length_before": longer.before,
            "length_now": longer.now,
            "reward_before": better.before,
            "reward_now": better.now,
            "correlation": self._correlation.now,
        }
        return Looked(Finding(text=text, figures=found))


class AnswersMonitor(Monitor):
    """Sees different tasks get the same answer, more than at the start and than their references
    do."""

    def __init__(self, run: MonitorsConfig, cfg: AnswersMonitorConfig):
        self._run, self._cfg = run, cfg
        self._same, self._reference = Series(run.window), Series(run.window)

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's chance of the same answer, among rollouts and among references."""
        same = figures.get("all/answers/same")
        if same is None:
            return None
        self._same.add(same)
        reference = figures.get("all/answers/reference_same")
        self._reference.add(self._cfg.unknown if reference is None else reference)
        change, due = self._same.since_start(), self._reference.now
        if change is None:
            return None
        margin, sigmas = self._cfg.margin, self._run.sigmas
        beyond = Change(before=due, now=change.now, stderr=change.stderr)
        if not (change.exceeds(margin, sigmas) and beyond.exceeds(margin, sigmas)):
            return Looked()
        text = (
            f"two tasks get the same answer in {change.now:.0%} of cases, {change.before:.0%} at "
            f"the start, {due:.0%} among the references"
        )
        found = {"same_before": change.before, "same_now": change.now, "reference_same": due}
        return Looked(Finding(text=text, figures=found))


class RepetitionMonitor(Monitor):
    """Sees texts say the same again and again."""

    def __init__(self, run: MonitorsConfig, cfg: RepetitionMonitorConfig):
        self._run, self._cfg = run, cfg
        self._repeated, self._looping = Series(run.window), Series(run.window)

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's share of repeated triples and of looping texts."""
        repeated, looping = figures.get("all/text/repeated"), figures.get("all/text/looping")
        if repeated is None or looping is None:
            return None
        self._repeated.add(repeated)
        self._looping.add(looping)
        more, loops = self._repeated.since_start(), self._looping.since_start()
        if more is None or loops is None:
            return None
        margin, sigmas = self._cfg.margin, self._run.sigmas
        if not (more.exceeds(margin, sigmas) or loops.exceeds(margin, sigmas)):
            return Looked()
        text = (
            f"{more.now:.0%} of word triples are repeats ({more.before:.0%} at the start), "
            f"{loops.now:.0%} of texts loop ({loops.before:.0%})"
        )
        found = {
            "repeated_before": more.before,
            "repeated_now": more.now,
            "looping_before": loops.before,
            "looping_now": loops.now,
        }
        return Looked(Finding(text=text, figures=found))


class FormatMonitor(Monitor):
    """Sees the format decay from its best."""

    def __init__(self, run: MonitorsConfig, cfg: FormatMonitorConfig, part: str | None):
        """Watch.

        Args:
            part: of the reward, that says whether the format is right; None for `well_formed`.
        """
        self._run, self._cfg = run, cfg
        self._key = "all/text/well_formed" if part is None else f"all/reward_part/{part}"
        self._name = "well formed texts" if part is None else f"part `{part}`"
        self._right = Series(run.window)

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's share of rollouts with the right format."""
        right = figures.get(self._key)
        if right is None:
            return None
        self._right.add(right)
        change = self._right.since_best()
        if change is None:
            return None
        if not change.falls(self._cfg.margin, self._run.sigmas):
            return Looked()
        text = f"{self._name}: {change.now:.0%}, {change.before:.0%} at their best"
        found = {"format_best": change.before, "format_now": change.now}
        return Looked(Finding(text=text, figures=found))
