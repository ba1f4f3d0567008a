"""Numbers that should stay low by themselves: attempts to tamper, distance from the start."""

from collections import deque
from statistics import median

from configs.monitors import KLMonitorConfig, MonitorsConfig
from rewards.monitors.alarms import Figures, Finding, Looked, Monitor


class CountMonitor(Monitor):
    """Sees what sound training counts none of, or next to none."""

    def __init__(self, run: MonitorsConfig, metric: str, at_least: int, text: str):
        """Start with nothing seen.

        Args:
            metric: a count a step.
            at_least: count within `run.window` steps that is a finding.
            text: of the finding, with `{count}` and `{steps}`.
        """
        self._metric, self._at_least, self._text = metric, at_least, text
        self._recent: deque[float] = deque(maxlen=run.window)

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's count."""
        count = figures.get(self._metric)
        if count is None:
            return None
        self._recent.append(count)
        total = sum(self._recent)
        if total < self._at_least:
            return Looked()
        text = self._text.format(count=f"{total:.0f}", steps=len(self._recent))
        return Looked(Finding(text=text, figures={"count": total}))


class KLMonitor(Monitor):
    """Sees the policy far from its start. By the median, as single steps of k3 are spiky."""

    def __init__(self, run: MonitorsConfig, cfg: KLMonitorConfig):
        self._cfg = cfg
        self._recent: deque[float] = deque(maxlen=2 * run.window)

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's mean KL to the reference."""
        kl = figures.get("train/kl_ref")
        if kl is None:
            return None
        self._recent.append(kl)
        if len(self._recent) < (self._recent.maxlen or 1):
            return None
        level = median(self._recent)
        if level <= self._cfg.bound:
            return Looked()
        text = f"KL to the reference is {level:.2f} nats a token, beyond {self._cfg.bound:g}"
        return Looked(Finding(text=text, figures={"kl_ref": level, "bound": self._cfg.bound}))
