"""What a judge did and cost, counted until it is asked for."""

from collections import Counter
from collections.abc import Iterable, Mapping

from configs.judges import PriceConfig
from rewards.score import FailureKind, Usage


class Meter:
    """Counts of one judge in one process. Sums alone, so that those of many actors add up."""

    def __init__(self, price: PriceConfig):
        self._price = price
        self.hits = 0
        """Questions that the cache, or an equal question in flight, answered."""
        self.retries = 0
        self._sums: Counter[str] = Counter()
        self._seconds = 0.0
        self._cost = 0.0

    def tried(self, seconds: float, usage: Usage) -> None:
        """Count one try, whatever it gave."""
        self._sums["tries"] += 1
        self._sums["prompt_tokens"] += usage.prompt_tokens
        self._sums["completion_tokens"] += usage.completion_tokens
        self._seconds += seconds
        self._cost += cost(usage, self._price)

    def verdict(self) -> None:
        """Count a question that was answered."""
        self._sums["verdicts"] += 1

    def failed(self, kind: FailureKind) -> None:
        """Count a question that stayed without a verdict."""
        self._sums[f"failed_{kind.name.lower().removeprefix('judge_')}"] += 1

    def take(self) -> dict[str, float]:
        """Return the counts since the last call, and begin anew."""
        found: dict[str, float] = {
            "verdicts": 0,
            "failed_refusal": 0,
            "failed_parse": 0,
            "failed_server": 0,
            "tries": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            **self._sums,
            "hits": self.hits,
            "retries": self.retries,
            "seconds": self._seconds,
            "cost": self._cost,
        }
        self._sums.clear()
        self.hits = self.retries = 0
        self._seconds = self._cost = 0.0
        return found


def cost(usage: Usage, price: PriceConfig) -> float:
    """Return what the tokens cost."""
    return (usage.prompt_tokens * price.prompt + usage.completion_tokens * price.completion) / 1e6


def add_up(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums over actors, and the mean seconds of a try."""
    total: dict[str, float] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0.0) + count
    seconds = total.pop("seconds", 0.0)
    if total.get("tries"):
        total["latency_mean"] = seconds / total["tries"]
    return total
