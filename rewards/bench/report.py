"""What the trials say of a grader: what it pays for, how surely, how fast, and go or no-go."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev

import numpy as np
from pydantic import JsonValue

from rewards.bench.probes import Kind, Probe
from rewards.bench.rows import Seen
from rewards.bench.trials import Trial

NEARLY = 0.9
"""Share of a right answer's score that a spoilt or another row's answer must stay below."""
COINCIDENCE = 0.1
"""Share of rows in which another row's answer may be right too."""
_SAME = 1e-9
_SHOWN = 160
_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What is too much, or too little."""

    right: float = 1.0
    """Score that a right answer must reach."""
    paid: float = 0.5
    """Share of a right answer's mean score from which a wrong answer counts as paid."""
    invalid: float = 0.2
    """Share of plain answers that the grader may fail to judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One answer that was judged wrongly."""

    row: int
    """From 1."""
    score: float | None
    """None where it could not be judged."""
    text: str
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """One probe's."""

    probe: str
    kind: str
    says: str
    answers: int
    mean: float | None
    """Of the judged answers, as are the next four; None where none was."""
    std: float | None
    lowest: float | None
    median: float | None
    highest: float | None
    paid: int
    """Answers whose score is at the probe's bound or above."""
    bound: float | None
    """None where right answers earn nothing, so that nothing can be compared with them."""
    invalid: int
    """Answers that could not be judged; none of them counts as 0."""
    failures: dict[str, int]
    p50_ms: float
    p95_ms: float
    verdict: str
    """`ok`, `fails`, `exploitable`, `lenient` or `not judged`."""
    examples: tuple[Example, ...]
    """Of right answers that were not paid, or of others that were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All that a bench found."""

    grader: str
    rows: int
    go: bool
    reasons: tuple[str, ...]
    """Why not; empty for a go."""
    warnings: tuple[str, ...]
    distinct_answers: int
    majority_answer: str
    majority_share: float
    """Share of rows whose answer is the most frequent one."""
    guess_baseline: float | None
    """Mean score of that answer over all rows: what a policy earns that looks at nothing."""
    reference_mean: float | None
    reference_std: float | None
    repeatable: float | None
    """Share of the answers graded again that got the same score each time."""
    repeat_std: float | None
    """Mean standard deviation of one answer's scores."""
    p50_ms: float
    p95_ms: float
    failures: dict[str, int]
    """Gradings by the kind of failure."""
    probes: tuple[ProbeResult, ...]

    def to_json(self) -> JsonValue:
        """Return it as JSON-ready data."""
        return asdict(self)  # type: ignore[return-value]


def report(grader: str, seen: Seen, trials: Sequence[Trial], bounds: Bounds) -> BenchReport:
    """Reduce the trials."""
    right = [s for t in trials if t.probe.kind is Kind.RIGHT for s in t.scores]
    worth = fmean(right) if right else None
    by_probe: dict[Probe, list[Trial]] = {}
    for trial in trials:
        by_probe.setdefault(trial.probe, []).append(trial)
    results = tuple(_result(p, own, worth, bounds) for p, own in by_probe.items())
    again = [t.scores for t in trials if len(t.scores) > 1]
    seconds = [s for t in trials for s in t.seconds]
    reasons = tuple(_reasons(results, worth))
    return BenchReport(
        grader=grader,
        rows=len(seen.rows),
        go=not reasons,
        reasons=reasons,
        warnings=tuple(_warnings(results, seen, bounds, again)),
        distinct_answers=len(seen.answers),
        majority_answer=_short(seen.majority),
        majority_share=round(seen.majority_share, 6),
        guess_baseline=_guess(seen, trials),
        reference_mean=worth,
        reference_std=pstdev(right) if right else None,
        repeatable=fmean(max(s) - min(s) < _SAME for s in again) if again else None,
        repeat_std=fmean(pstdev(s) for s in again) if again else None,
        p50_ms=_ms(seconds, 0.5),
        p95_ms=_ms(seconds, 0.95),
        failures=dict(Counter(f for t in trials for f in t.failures).most_common()),
        probes=results,
    )


def _result(
    probe: Probe, trials: Sequence[Trial], worth: float | None, bounds: Bounds
) -> ProbeResult:
    judged = [(t, fmean(t.scores)) for t in trials if t.scores]
    scores = [score for _, score in judged]
    bound = _bound(probe.kind, worth, bounds)
    paid = [(t, s) for t, s in judged if bound is not None and s >= bound - _SAME]
    failed = [t for t in trials if not t.scores]
    if probe.kind is Kind.RIGHT:
        wrong = [(t, s) for t, s in judged if (t, s) not in paid] + [(t, None) for t in failed]
    else:
        wrong = sorted(paid, key=lambda found: -found[1])
    seconds = [s for t in trials for s in t.seconds]
    return ProbeResult(
        probe=probe.name,
        kind=probe.kind.value,
        says=probe.says,
        answers=len(trials),
        mean=fmean(scores) if scores else None,
        std=pstdev(scores) if scores else None,
        lowest=min(scores, default=None),
        median=float(np.median(scores)) if scores else None,
        highest=max(scores, default=None),
        paid=len(paid),
        bound=bound,
        invalid=len(failed),
        failures=dict(Counter(f for t in trials for f in t.failures).most_common()),
        p50_ms=_ms(seconds, 0.5),
        p95_ms=_ms(seconds, 0.95),
        verdict=_verdict(probe.kind, len(judged), len(paid), len(trials)),
        examples=tuple(_example(t, s) for t, s in wrong[:_EXAMPLES]),
    )


def _bound(kind: Kind, worth: float | None, bounds: Bounds) -> float | None:
    """Return the score from which an answer of this kind is paid."""
    if kind is Kind.RIGHT:
        return bounds.right
    if worth is None or worth <= 0:
        return None
    return worth * (bounds.paid if kind in (Kind.WRONG, Kind.HACK) else NEARLY)


def _verdict(kind: Kind, judged: int, paid: int, answers: int) -> str:
    if kind is Kind.RIGHT:
        return "ok" if paid == answers else "fails"
    if judged == 0:
        return "not judged"
    if kind is Kind.LENIENT:
        return "lenient" if paid else "ok"
    allowed = COINCIDENCE * judged if kind is Kind.LUCKY else 0
    return "exploitable" if paid > allowed else "ok"


def _reasons(results: Sequence[ProbeResult], worth: float | None) -> Iterator[str]:
    for found in results:
        if found.verdict == "fails":
            invalid = f", {found.invalid} of them not judged" if found.invalid else ""
            yield (
                f"{found.answers - found.paid} of {found.answers} right answers do not reach "
                f"{found.bound:g}{invalid}{_hint(found)}"
            )
    if worth is not None and worth <= 0:
        yield f"right answers earn {worth:g} on average: nothing can be learned from that"
    for found in results:
        if found.verdict == "exploitable":
            yield f"{found.probe} is paid: {found.says} ({found.paid} of {found.answers} answers)"


def _hint(found: ProbeResult) -> str:
    """Say what to do where no right answer is paid at all."""
    if found.highest is None or found.highest > 0:
        return ""
    return (
        "; if they are written in a form of their own, give it: "
        "--reference-template 'So \\boxed{ {{ item.answer }} }'"
    )


def _warnings(
    results: Sequence[ProbeResult],
    seen: Seen,
    bounds: Bounds,
    again: Sequence[Sequence[float]],
) -> Iterator[str]:
    if len(seen.rows) > 1 and seen.majority_share > 0.5:
        yield (
            f"one answer is right in {seen.majority_share:.0%} of rows: a policy that always says "
            "it earns that much"
        )
    if len(seen.rows) > 1 and len(seen.answers) == 1:
        yield "all rows have the same answer, so no other row's answer could be tried"
    for found in results:
        plain = found.kind in (Kind.WRONG, Kind.DAMAGED, Kind.LUCKY)
        if plain and found.answers and found.invalid / found.answers > bounds.invalid:
            yield (
                f"{found.invalid} of {found.answers} answers of `{found.probe}` cannot be judged; "
                "in training such rollouts are invalid, and too many stop the run"
            )
        if found.kind == Kind.HACK and found.invalid:
            kinds = ", ".join(found.failures)
            yield (
                f"{found.invalid} of {found.answers} answers of `{found.probe}` make the grader "
                f"fail ({kinds}): a policy can learn to"
            )
        if found.verdict == "lenient":
            yield f"{found.probe} is paid: {found.says}"
    spread = fmean(pstdev(s) for s in again) if again else 0.0
    if spread > 0.05:
        yield f"the same answer gets scores that differ by {spread:.3f} (standard deviation)"


def _guess(seen: Seen, trials: Sequence[Trial]) -> float | None:
    """Return what the most frequent answer earns: as a right one in its rows, and as it was tried
    in the others."""
    tried = [fmean(t.scores) for t in trials if t.probe.name == "majority" and t.scores]
    own = [
        fmean(t.scores)
        for t in trials
        if t.probe.kind is Kind.RIGHT and t.row.answer == seen.majority and t.scores
    ]
    known = tried or len(seen.answers) == 1
    return fmean([*tried, *own]) if known and (tried or own) else None


def _example(trial: Trial, score: float | None) -> Example:
    return Example(
        row=trial.row.index + 1,
        score=score,
        text=_short(trial.text),
        failure="" if trial.scores else ", ".join(sorted(set(trial.failures))),
    )


def _short(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    return f"{text[: _SHOWN - 20]}... ({len(text)} characters)"


def _ms(seconds: Sequence[float], q: float) -> float:
    return round(1000 * float(np.quantile(seconds, q)), 3) if seconds else 0.0
