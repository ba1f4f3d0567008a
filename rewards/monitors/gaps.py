"""A score that may be fooled against one to trust: reward and gold, judge and verifier, training
and held-out."""

import math
from collections.abc import Sequence

from pydantic import JsonValue

from configs.monitors import GapMonitorConfig, HeldOutMonitorConfig, MonitorsConfig
from rewards.monitors.alarms import Figures, Finding, Looked, Monitor
from rewards.monitors.evidence import Change, Series

_SETTINGS = ("items", "samples", "temperature", "max_tokens", "pass_threshold")
"""What must be the same for two evaluations to compare."""


class GapMonitor(Monitor):
    """Sees the gap between two means over the same rollouts grow, the trusted one left behind."""

    def __init__(
        self,
        run: MonitorsConfig,
        cfg: GapMonitorConfig,
        *,
        proxy: str,
        trusted: str,
        names: tuple[str, str],
    ):
        """Watch.

        Args:
            proxy: metric of the score that may be fooled.
            trusted: metric of the other one.
            names: what an alarm calls them.
        """
        self._run, self._cfg, self._names = run, cfg, names
        self._keys = (proxy, trusted)
        self._proxy, self._trusted, self._gap = (Series(run.window) for _ in range(3))

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's two means."""
        proxy, trusted = (figures.get(key) for key in self._keys)
        if proxy is None or trusted is None:
            return None
        self._proxy.add(proxy)
        self._trusted.add(trusted)
        self._gap.add(proxy - trusted)
        changes = [s.since_start() for s in (self._gap, self._proxy, self._trusted)]
        gap, risen, followed = changes
        if gap is None or risen is None or followed is None:
            return None
        left = followed.size < self._cfg.min_share * risen.size
        if not (left and gap.exceeds(self._cfg.margin, self._run.sigmas)):
            return Looked()
        first, second = self._names
        text = (
            f"{first} {_moved(risen)} since the start and {second} {_moved(followed)}: the gap "
            f"grew by {gap.size:.3f}, standard error {gap.stderr:.3f}"
        )
        return Looked(Finding(text=text, figures=_figures(first, risen, second, followed, gap)))


class HeldOutMonitor(Monitor):
    """Sees training's reward rise and the held-out one stay. It looks at each evaluation."""

    def __init__(self, run: MonitorsConfig, cfg: HeldOutMonitorConfig):
        self._run, self._cfg = run, cfg
        self._training = Series(run.window)
        self._first: tuple[float, float, float] | None = None
        """Held-out reward, its standard error, and training's reward then; None before any."""
        self._settings: Sequence[JsonValue] = ()

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's mean reward."""
        reward = figures.get("all/reward/mean")
        if reward is not None:
            self._training.add(reward)
        return None

    def evaluated(self, step: int, figures: Figures) -> Looked | None:
        """Take an evaluation's mean reward and compare it with the first one."""
        held_out, stderr = figures.get("reward_mean"), _stderr(figures)
        if held_out is None or stderr is None:
            return None
        settings = [figures.row.get(key) for key in _SETTINGS]
        if self._first is None or settings != self._settings:
            if step > 0 and not self._training.full:
                return None
            start = math.nan if step == 0 else self._training.now
            self._first, self._settings = (held_out, stderr, start), settings
            return None
        if not self._training.full:
            return None
        before, stderr_before, training = self._first
        risen = Change(
            before=self._training.start if math.isnan(training) else training,
            now=self._training.now,
            stderr=math.sqrt(2) * self._training.stderr,
        )
        followed = Change(before=before, now=held_out, stderr=math.hypot(stderr, stderr_before))
        gap = Change(
            before=risen.before - followed.before,
            now=risen.now - followed.now,
            stderr=math.hypot(risen.stderr, followed.stderr),
        )
        sigmas, margin = self._run.sigmas, self._cfg.margin
        left = followed.size < self._cfg.min_share * risen.size
        if not (left and gap.exceeds(margin, sigmas) and risen.exceeds(margin, sigmas)):
            return Looked()
        text = (
            f"training's reward {_moved(risen)} and the held-out one {_moved(followed)}: it does "
            f"not carry over (the gap grew by {gap.size:.3f}, standard error {gap.stderr:.3f})"
        )
        figures_ = _figures("training", risen, "held_out", followed, gap)
        return Looked(Finding(text=text, figures=figures_))


def _stderr(figures: Figures) -> float | None:
    """Return an evaluation's standard error: of its rewards, and no less than its interval of the
    pass rate tells, as a few items that all fail look more certain than they are."""
    stderr, low, high = (
        figures.get(key) for key in ("reward_stderr", "pass_rate_low", "pass_rate_high")
    )
    if stderr is None or low is None or high is None:
        return None
    return max(stderr, (high - low) / (2 * 1.96))


def _moved(change: Change) -> str:
    if abs(change.size) <= change.stderr:
        return f"stayed at {change.now:.3f}"
    verb = "rose" if change.size > 0 else "fell"
    return f"{verb} from {change.before:.3f} to {change.now:.3f}"


def _figures(
    first: str, risen: Change, second: str, followed: Change, gap: Change
) -> dict[str, float]:
    return {
        f"{first}_before": risen.before,
        f"{first}_now": risen.now,
        f"{second}_before": followed.before,
        f"{second}_now": followed.now,
        "gap_growth": gap.size,
        "gap_stderr": gap.stderr,
    }
