"""Flat metric names as Prometheus wants them: a family, and labels for what varies in the name.

`source/sums/trained/pass@4` is `braid_source_pass_at{source="sums", pool="trained", k="4"}`. A
family has the same labels wherever it occurs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "braid"

_PATTERNS = tuple(
    (re.compile(f"^{pattern}$"), family)
    for pattern, family in (
        (
            r"source/(?P<source>[^/]+)/(?P<pool>all|trained)/reward_part/(?P<part>[^/]+)(?P<rest>/.*)?",
            "source_reward_part",
        ),
        (r"source/(?P<source>[^/]+)/(?P<pool>all|trained)/pass@(?P<k>\d+)", "source_pass_at"),
        (r"source/(?P<source>[^/]+)/alarm/(?P<monitor>.+)", "source_alarm"),
        (r"source/(?P<source>[^/]+)/(?P<pool>all|trained)/(?P<rest>.+)", "source"),
        (r"source/(?P<source>[^/]+)/total/(?P<rest>.+)", "source_so_far"),
        (r"source/(?P<source>[^/]+)/(?P<rest>.+)", "source_step"),
        (r"alarm/(?P<monitor>.+)", "alarm"),
        (r"judge/(?P<judge>.+)/(?P<rest>[^/]+)", "judge"),
        (r"ledger/(?P<rest>rejected|moved)/(?P<reason>[^/]+)", "ledger"),
        (r"time/(?P<phase>[^/]+)", "phase_seconds"),
        (r"eval/(?P<source>[^/]+)/pass@(?P<k>\d+)", "held_out_pass_at"),
        (r"eval/(?P<source>[^/]+)/(?P<rest>.+)", "held_out"),
        (r"eval/(?P<rest>.+)", "evaluation"),
        (r"(?P<rest>.+)", ""),
    )
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A metric's family and labels, the run's among them."""

    family: str
    labels: Mapping[str, str]


def sample(name: str, run: str) -> Sample:
    """Return the family and labels of a flat name."""
    for pattern, family in _PATTERNS:
        if match := pattern.match(name):
            labels = dict(match.groupdict())
            rest = labels.pop("rest", None) or ""
            words = re.sub(r"[^a-zA-Z0-9]+", "_", f"{family}_{rest}").strip("_")
            return Sample(
                f"{PREFIX}_{words}", {"run": run, **{k: v or "" for k, v in labels.items()}}
            )
    raise AssertionError(f"the last pattern takes every name, but not {name!r}")
