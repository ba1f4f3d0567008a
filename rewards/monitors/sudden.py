"""Numbers that leave what was usual for them of late: the stability guards.

What is usual is the median of the latest steps, and 1.4826 times their median absolute deviation,
which is the standard deviation where they are Gaussian: a few wild values move neither.
"""

import math
from collections import deque
from statistics import median

from configs.guards import (
    EntropyGuardConfig,
    FallGuardConfig,
    GuardConfig,
    GuardsConfig,
    LengthGuardConfig,
    RiseConfig,
)
from rewards.monitors.alarms import Figures, Finding, Looked, Monitor

_GAUSSIAN = 1.4826
LOSS, GRAD_NORM = "train/loss_max", "train/grad_norm_max"
SKIPPED, NON_FINITE = "train/skipped", "train/non_finite"
CRITIC_NON_FINITE = "train/critic/non_finite"
"""Updates of the critic that were left out; it has no other bound."""


class Usual:
    """The latest values of one figure."""

    def __init__(self, run: GuardsConfig):
        self._values: deque[float] = deque(maxlen=run.window)
        self._warmup = min(run.warmup, run.window)

    def add(self, value: float) -> None:
        """Take the next value."""
        self._values.append(value)

    @property
    def known(self) -> bool:
        """Whether there are enough values to say."""
        return len(self._values) >= self._warmup

    @property
    def level(self) -> float:
        """Their median."""
        return median(self._values)

    @property
    def spread(self) -> float:
        """Their robust standard deviation."""
        level = self.level
        return _GAUSSIAN * median(abs(v - level) for v in self._values)


def highest(usual: Usual, cfg: RiseConfig) -> float:
    """Return the largest value that raises nothing; infinite during warm-up."""
    if not usual.known:
        return math.inf
    level = usual.level
    return max(level + max(cfg.sigmas * usual.spread, cfg.margin), cfg.factor * level)


def lowest(
    usual: Usual, cfg: GuardConfig, *, margin: float, share: float, least: float = -math.inf
) -> float:
    """Return the smallest value that raises nothing.

    Args:
        least: below this anything raises, however slowly it came.
    """
    if not usual.known:
        return -math.inf
    level = usual.level
    fallen = level - max(cfg.sigmas * usual.spread, margin)
    return max(min(fallen, share * level) if level > 0 else fallen, least)


class RiseGuard(Monitor):
    """Sees a figure far above its median."""

    def __init__(self, run: GuardsConfig, cfg: RiseConfig, *, key: str, name: str):
        """Watch.

        Args:
            key: the figure's name in metrics.jsonl.
            name: what an alarm calls it.
        """
        self._cfg, self._key, self._name = cfg, key, name
        self._usual = Usual(run)

    @property
    def limit(self) -> float:
        """What the next step's value must not exceed."""
        return highest(self._usual, self._cfg)

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's value."""
        value = figures.get(self._key)
        if value is None:
            return None
        limit, usual = self.limit, self._usual
        if value <= limit:
            usual.add(value)
            return Looked()
        found = _leaves(self._name, "rose", value, usual, limit)
        if not figures.get(SKIPPED):  # an update that was not applied tells of nothing to come
            usual.add(value)
        return Looked(found)


class FallGuard(Monitor):
    """Sees a figure far below its median."""

    def __init__(self, run: GuardsConfig, cfg: FallGuardConfig, *, key: str, name: str):
        """Watch; the arguments are those of `RiseGuard`."""
        self._cfg, self._key, self._name = cfg, key, name
        self._least = cfg.least if isinstance(cfg, EntropyGuardConfig) else -math.inf
        self._usual = Usual(run)

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's value."""
        value = figures.get(self._key)
        if value is None:
            return None
        cfg, usual = self._cfg, self._usual
        limit = lowest(usual, cfg, margin=cfg.margin, share=cfg.share, least=self._least)
        found = _leaves(self._name, "fell", value, usual, limit) if value < limit else None
        usual.add(value)
        return Looked(found)


class LengthGuard(Monitor):
    """Sees a source's texts grow or shrink at once."""

    def __init__(self, run: GuardsConfig, cfg: LengthGuardConfig):
        self._cfg, self._usual = cfg, Usual(run)

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's mean length."""
        value = figures.get("all/length/mean")
        if value is None:
            return None
        cfg, usual, found = self._cfg, self._usual, None
        high = highest(usual, cfg)
        low = lowest(usual, cfg, margin=cfg.margin, share=1 / cfg.factor)
        if value > high:
            found = _leaves("mean length", "rose", value, usual, high)
        elif value < low:
            found = _leaves("mean length", "fell", value, usual, low)
        usual.add(value)
        return Looked(found)


def any_skipped(figures: Figures) -> bool:
    """Whether an update of policy or critic was not applied."""
    return bool(figures.get(SKIPPED) or figures.get(CRITIC_NON_FINITE))


class NonFiniteGuard(Monitor):
    """Sees updates whose loss or gradient was no number; the trainer did not apply them."""

    def observe(self, figures: Figures) -> Looked | None:
        """Take a step's counts, the policy's and the critic's."""
        counts = {"updates": figures.get(NON_FINITE), "critic": figures.get(CRITIC_NON_FINITE)}
        known = {name: count for name, count in counts.items() if count is not None}
        if not known:
            return None
        if not any(known.values()):
            return Looked()
        whose = " and ".join(
            f"{count:.0f} {'of the critic' if name == 'critic' else 'of the policy'}"
            for name, count in known.items()
            if count
        )
        text = f"loss or gradient of optimizer steps ({whose}) was not finite; none was applied"
        return Looked(Finding(text=text, figures=known))


def _leaves(name: str, verb: str, value: float, usual: Usual, limit: float) -> Finding:
    level, spread = usual.level, usual.spread
    text = (
        f"{name} {verb} to {value:.4g}, beyond {limit:.4g}; its median of late is {level:.4g}, "
        f"robust deviation {spread:.2g}"
    )
    figures = {"value": value, "limit": limit, "median": level, "deviation": spread}
    return Finding(text=text, figures=figures)
