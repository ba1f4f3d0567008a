"""Numbers that should stay low by themselves: attempts to tamper, distance from the start."""

from collections import deque
from statistics import median

from configs.monitors import KLMonitorConfig, MonitorsConfig, TamperingMonitorConfig
from rewards.monitors.alarms import Figures, Finding, Looked, Monitor


class TamperingMonitor(Monitor):
    """Sees attempts to tamper with the grading, which an honest policy does not make."""

    def __init__(self, run: MonitorsConfig, cfg: TamperingMonitorConfig):
        self._cfg = cfg
        self._recent: deque[float] = deque(maxlen=run.window)

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's count."""
        attempts = figures.get("all/tampering")
        if attempts is None:
            return None
        self._recent.append(attempts)
        total = sum(self._recent)
        if total < self._cfg.attempts:
            return Looked()
        text = (
            f"the sandbox saw {total:.0f} attempts to tamper with the grading in "
            f"{len(self._recent)} steps"
        )
        return Looked(Finding(text=text, figures={"attempts": total}))


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
