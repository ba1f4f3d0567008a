"""A judge against people: its verdicts on answers that people have labelled."""

import asyncio
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from configs.errors import ConfigError, Problem, first_few
from configs.graders.judged import JudgedGrader
from configs.graders.union import GraderConfig
from rewards.evaluate import evaluate
from rewards.judges.agreement import agreement, confusion, kappa, nearest, pearson, spearman
from rewards.judges.client import Judge
from rewards.judges.panel import NO_REWARD_MODELS, Panel
from rewards.score import FailureKind, GradeFailed, Score
from rewards.services import Services
from rewards.subject import Subject
from rollouts.types import Message

_MOST_LEVELS = 11
_SEED_STEP = 100_003
"""Between the seeds of two repetitions; above all seeds of one."""


class Anchor(BaseModel):
    """One answer that people have judged."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    item: dict[str, JsonValue] = {}
    """The row, as graders see it."""
    prompt: str = ""
    """What was asked, for graders that show the task's own messages."""
    sample: str
    """The answer."""
    label: Annotated[float, Field(allow_inf_nan=False)]
    """What people gave it, on the grader's scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How one version of a judge fared on the anchors."""

    judge: str
    version: str
    """Hash of model and prompt."""
    models: tuple[str, ...]
    """As the judge called itself."""
    prompt_hash: str
    """Of the grader with all its texts and settings."""
    anchors_hash: str
    anchors: int
    failed: Mapping[str, int]
    """Anchors without a verdict, by kind; they are in no other figure."""
    levels: tuple[float, ...]
    """To which people's labels and the judge's scores are rounded for the table."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts [people][judge]."""
    agreement: float
    kappa: float | None
    weighted_kappa: float | None
    spearman: float | None
    bias: float
    """Mean of judge minus people: above 0 it is too kind."""
    length_bias: float | None
    """Correlation of judge minus people with the answer's length."""
    position_bias: float | None
    """Mean of the score with the answer in front minus that with it behind; for pairs."""
    repeatable: float | None
    """Share of the anchors that had the same level every time; None if asked once."""
    scores: tuple[float | None, ...]
    """Of each anchor, in the file's order."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What changed from one version of a judge to another, on the same anchors."""

    before: str
    """Version."""
    kappa_before: float | None
    changed: float
    """Share of the anchors whose level is another."""
    shift: float
    """Mean change of the score."""


def read_anchors(path: Path) -> list[Anchor]:
    """Read a JSONL file of anchors.

    Raises:
        ConfigError: every line that is none, or that there are fewer than two.
    """
    anchors: list[Anchor] = []
    problems: list[Problem] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other line ends
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise ConfigError(Problem(where=str(path), what=what, fix="Check the path.")) from None
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text (byte {error.start})"
        raise ConfigError(Problem(where=str(path), what=what)) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            anchors.append(Anchor.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            what = ": ".join(["is no anchor", *map(str, first["loc"]), first["msg"]])
            fix = 'Write {"item": {...}, "prompt": "...", "sample": "...", "label": 0.5}.'
            problems.append(Problem(where=f"{path}:{number}", what=what, fix=fix))
    if not problems and len(anchors) < 2:
        problems.append(Problem(where=str(path), what="has fewer than two anchors"))
    if problems:
        raise ConfigError(first_few(problems, str(path)))
    return anchors


async def calibrate(
    grader: GraderConfig, anchors: Sequence[Anchor], services: Services, *, repeats: int = 1
) -> Calibration:
    """Have a grader's judge score the anchors.

    Args:
        repeats: times that each is scored, with other seeds; the first one counts.

    Raises:
        GradeFailed: not one anchor got a verdict; with the first one's reason.
    """
    assert isinstance(grader, JudgedGrader)
    rounds = [
        await asyncio.gather(*(_grade(_reseeded(grader, r), a, services) for a in anchors))
        for r in range(repeats)
    ]
    first = rounds[0]
    kept = [(a, s) for a, s in zip(anchors, first, strict=True) if isinstance(s, Score)]
    failures = [s for s in first if isinstance(s, GradeFailed)]
    if not kept:
        raise failures[0]
    levels = _levels([a.label for a in anchors])
    people, judge = [a.label for a, _ in kept], [s.value for _, s in kept]
    table = confusion(people, judge, levels)
    gaps = [j - p for j, p in zip(judge, people, strict=True)]
    names = {str(s.notes["sampled_model_name"]) for _, s in kept}
    identity = services.judges[grader.model].identity
    prompt_hash = _hash(grader.model_dump(mode="json", exclude={"name", "timeout_s", "model"}))
    return Calibration(
        judge=grader.model,
        version=_hash([identity, sorted(names), prompt_hash]),
        models=tuple(sorted(names)),
        prompt_hash=prompt_hash,
        anchors_hash=_hash([a.model_dump(mode="json") for a in anchors]),
        anchors=len(anchors),
        failed=dict(Counter(f.kind for f in failures)),
        levels=tuple(levels),
        confusion=tuple(map(tuple, table)),
        agreement=agreement(table),
        kappa=kappa(table, levels),
        weighted_kappa=kappa(table, levels, squared=True),
        spearman=spearman(people, judge),
        bias=statistics.fmean(gaps),
        length_bias=pearson(gaps, [float(len(a.sample)) for a, _ in kept]),
        position_bias=_position_bias([s for _, s in kept]),
        repeatable=_repeatable(rounds, levels) if repeats > 1 else None,
        scores=tuple(s.value if isinstance(s, Score) else None for s in first),
    )


def drift(before: Mapping[str, Any], now: Calibration) -> Drift | None:
    """Compare with a kept calibration of another version; None where they share no anchor.

    Args:
        before: as `Calibration.to_json` gave it.
    """
    if before["anchors_hash"] != now.anchors_hash or before["version"] == now.version:
        return None
    pairs = [
        (float(a), b)
        for a, b in zip(before["scores"], now.scores, strict=True)
        if a is not None and b is not None
    ]
    if not pairs:
        return None
    moved = [nearest(a, now.levels) != nearest(b, now.levels) for a, b in pairs]
    return Drift(
        before=before["version"],
        kappa_before=before["weighted_kappa"],
        changed=statistics.fmean(moved),
        shift=statistics.fmean(b - a for a, b in pairs),
    )


def subject_of(anchor: Anchor) -> Subject:
    """Return the anchor as graders see it."""
    subject = Subject.of_text(anchor.item, anchor.sample)
    if not anchor.prompt:
        return subject
    asked = (Message(role="user", content=anchor.prompt),)
    return Subject(task=replace(subject.task, prompt=asked), rollout=subject.rollout)


async def _grade(grader: GraderConfig, anchor: Anchor, services: Services) -> Score | GradeFailed:
    try:
        return await evaluate(grader, subject_of(anchor), services, "calibration")
    except GradeFailed as failed:
        return failed


def _reseeded(grader: Any, number: int) -> Any:
    """Return the grader with other seeds for a repetition; the first one is the grader itself."""
    if number == 0:
        return grader
    seed = (grader.sampling_params.seed or 0) + _SEED_STEP * number
    params = grader.sampling_params.model_copy(update={"seed": seed})
    return grader.model_copy(update={"sampling_params": params})


def _levels(labels: Sequence[float]) -> list[float]:
    """Return the labels that people gave, or even steps over their range if they are many."""
    levels = sorted(set(labels))
    if len(levels) <= _MOST_LEVELS:
        return levels
    low, high = levels[0], levels[-1]
    steps = _MOST_LEVELS - 1
    return [low + (high - low) * i / steps for i in range(_MOST_LEVELS)]


def _position_bias(scores: Sequence[Score]) -> float | None:
    gaps: list[float] = []
    for score in scores:
        orders = score.notes.get("orders")
        if isinstance(orders, list):
            front, behind = (float(str(o)) for o in orders)
            gaps.append(front - behind)
    return statistics.fmean(gaps) if gaps else None


def _repeatable(rounds: Sequence[Sequence[Score | GradeFailed]], levels: Sequence[float]) -> float:
    def same(given: Sequence[Score | GradeFailed]) -> bool:
        found = {nearest(s.value, levels) if isinstance(s, Score) else None for s in given}
        return len(found) == 1 and None not in found

    return statistics.fmean(same(given) for given in zip(*rounds, strict=True))


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


class JudgesAlone:
    """Services for graders that ask judges and nothing else."""

    reward_models = NO_REWARD_MODELS

    def __init__(self, judges: Panel[Judge]):
        self.judges = judges

    async def compute(self, path: str, subject: Subject) -> Score:
        """Refuse: a judge's calibration runs no code."""
        raise GradeFailed(FailureKind.WORKER_LOST, f"{path} is no judge")
