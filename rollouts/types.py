"""All the data that flows, in the order in which it is made. Read this file first.

Symbols: P groups a step, G rollouts a group, L tokens of one sample, C tokens of one completion,
T packed tokens of a micro-batch, S sequences in it. Position t of every stream describes token t
itself (its mask, its logprob, its advantage); the shift to next-token form happens once, in
`trainer/logprobs.py`.

Who makes what: mixing -> Task -> rollout actor -> RolloutGroup -> reward actor -> GroupSummary
(to the driver) and TrainingSample (to the trainer, through Ray's object store) -> MicroBatch.
The driver holds `GroupSummary` and references alone, never tokens. What a critic adds: `values.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from configs.redact import redact

I32: TypeAlias = NDArray[np.int32]
F32: TypeAlias = NDArray[np.float32]
Bool: TypeAlias = NDArray[np.bool_]
Ref: TypeAlias = object
"""A Ray ObjectRef, opaque here because this package never imports Ray."""


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"


class RolloutStatus(StrEnum):
    """What became of a rollout."""

    COMPLETED = "completed"
    TRUNCATED = "truncated"
    """Ended by the token limit; it has no end-of-sequence token and is graded as it is."""
    INVALID = "invalid"
    """Generation, environment or grader failed: no reward, and never trained on."""


class Boundary(StrEnum):
    """Where a rollout failed."""

    GENERATE = "generate"
    ENVIRONMENT = "environment"
    RENDER = "render"
    REWARD = "reward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: str
    """system, user, assistant or tool."""
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One prompt and its truth."""

    task_id: str
    """`<source>/<split>/<item>`: the same item has the same id in every epoch."""
    source: str
    prompt: tuple[Message, ...]
    answer: str | None
    """Reference answer, seen by graders alone."""
    metadata: Mapping[str, JsonValue]
    """What the source's grader needs besides; read-only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one group's completions are drawn."""

    temperature: float
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """The order to sample one group; the identity by which everything after is accounted."""

    group_id: str
    """Unique in the run: `<task_id>#e<epoch>a<attempt>`."""
    task: Task
    group_size: int
    sampling: Sampling
    step: int
    """Training step that the group is destined for; -1 for evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Completion tokens [start, end) sampled under one policy version."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What one call of the engine returned."""

    token_ids: I32
    """[C], the end-of-sequence token included where it was sampled."""
    logprobs: F32
    """[C], of the sampled tokens, temperature applied."""
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]
    """Covers [0, C) without gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Tokens that the policy did not write, then those that it did."""

    prompt_ids: I32
    """Tokens new in this turn: the rendered prompt, or environment and template tokens."""
    completion: Completion
    text: str
    """The completion decoded, special tokens left out."""
    token_ends: I32 | None = None
    """[C], characters of `text` that stand once a token is there; None where nobody asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutError:
    """A failure as data."""

    boundary: Boundary
    kind: str
    """Exception's class name, or `timeout`."""
    message: str
    """Without secrets and half characters, which nothing could write down; they are escaped."""

    def __post_init__(self) -> None:
        whole = self.message.encode(errors="backslashreplace").decode()
        object.__setattr__(self, "message", redact(whole))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanScore:
    """Credit for a stretch of what the policy wrote."""

    turn: int
    """Index into the rollout's turns."""
    start: int
    end: int
    """[start, end) of that turn, in `unit`."""
    score: float
    unit: Literal["characters", "tokens"] = "characters"
    """Characters of the turn's text, or tokens of its completion."""
    part: str = ""
    """Reward part that gave it; set when the rollout is graded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """What a source's gold grader said of a rollout; nothing is trained on it."""

    score: float | None
    """On the scale of the reward; None where it could not judge."""
    failure: str = ""
    """Why it could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One episode: its turns and, once graded, its reward."""

    index: int
    """Place in the group, 0 to G-1."""
    turns: tuple[Turn, ...]
    status: RolloutStatus
    reward: float | None = None
    reward_parts: Mapping[str, float]
    """Each part before its weight."""
    reward_notes: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """What graders had to say, by part: verdicts, explanations, sub-scores; for the record."""
    spans: tuple[SpanScore, ...] = ()
    """Credit for stretches of text, once graded; empty where the reward is for the whole."""
    error: RolloutError | None = None
    gold: Gold | None = None
    """What the source's gold grader said; None where it was not asked."""
    tampering: int = 0
    """Attempts to tamper with the grading that the sandbox saw."""
    canaries_passed: int = 0
    """Known-wrong solutions that passed the tests that this rollout was graded by."""

    @property
    def last_text(self) -> str:
        """Text of the last completion; empty when there is none."""
        return self.turns[-1].text if self.turns else ""

    @property
    def num_tokens(self) -> int:
        """L: prompt and completion tokens of all turns."""
        return sum(len(t.prompt_ids) + len(t.completion.token_ids) for t in self.turns)

    @property
    def num_completion_tokens(self) -> int:
        """Tokens that the policy sampled."""
        return sum(len(t.completion.token_ids) for t in self.turns)

    @property
    def versions(self) -> tuple[int, ...]:
        """Policy versions that wrote this rollout, oldest first."""
        return tuple(sorted({s.version for t in self.turns for s in t.completion.versions}))


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The G rollouts of one task; the unit of advantages and of accounting."""

    request: GroupRequest
    rollouts: tuple[Rollout, ...]
    greedy: Rollout | None = None
    """At temperature 0: the baseline of the others, where the estimator asks for it. It is graded,
    and never trained on."""
    generate_s: float
    """Seconds from the engine's receipt of the request to the last token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedGroup:
    """What a rollout actor hands to the driver: where the tokens are, not the tokens."""

    group_id: str
    ref: Ref
    """To a RolloutGroup."""
    num_completion_tokens: int
    generate_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleHandle:
    """Where one training sample lies and what planning needs to know of it."""

    ref: Ref
    """To a tuple of TrainingSample, or of pairs of them, which stay side by side."""
    row: int
    """Its place in that tuple."""
    num_tokens: int
    num_loss_tokens: int
    advantage: float = 0.0
    """By the estimator, over the sample's loss tokens on average."""
    advantage_variance: float = 0.0
    """Of the advantage over those tokens; 0 where the rollout as a whole answers."""
    advantage_scale: float = 1.0
    """Factor on the advantages when the sample is fetched; set when the step is planned."""
    advantage_shift: float = 0.0
    """Taken from the advantages before that factor."""
    needs_values: bool = False
    """Whether its advantages come of a critic's values, and are unknown until those are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTraits:
    """What the monitors need of a text, without the text (`rewards.monitors.traits`)."""

    answer: int
    """Hash of the answer that the text gives."""
    repeated: float
    """Share of its word triples that were there before."""
    looping: bool
    """Whether its end compresses to almost nothing."""
    well_formed: bool
    """Whether it is not empty, ended by itself, and has no broken or control characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStats:
    """The numbers of one rollout that the driver keeps."""

    reward: float | None
    reward_parts: Mapping[str, float]
    num_completion_tokens: int
    status: RolloutStatus
    error: RolloutError | None
    part_advantages: Mapping[str, float] = field(default_factory=dict[str, float])
    """What each part adds to the advantage; empty where the objective does not tell them apart."""
    closed_parts: tuple[str, ...] = ()
    """Parts behind a gate that was closed."""
    traits: TextTraits | None = None
    """None where there is no text."""
    gold: Gold | None = None
    tampering: int = 0
    canaries_passed: int = 0
    teacher_gap: float | None = None
    """Sum of log(sampler / teacher) over its sampled tokens, in nats; None where nobody teaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """All that the driver ever holds of a group."""

    group_id: str
    task_id: str
    source: str
    step: int
    """Step that the group is destined for; -1 for evaluation."""
    rollouts: tuple[RolloutStats, ...]
    samples: tuple[SampleHandle, ...]
    """The valid rollouts, ready to train on; empty for evaluation."""
    group_ref: Ref
    """To the graded RolloutGroup."""
    oldest_version: int
    newest_version: int
    generate_s: float
    grade_s: float
    has_signal: bool | None = None
    """Whether any token has an advantage; None where none was computed."""
    reference: int | None = None
    """Hash of the task's own answer, comparable with `TextTraits.answer`."""
    greedy: RolloutStats | None = None
    """Of the rollout that is the others' baseline; not among `rollouts`."""

    @property
    def rewards(self) -> tuple[float, ...]:
        """Rewards of the valid rollouts."""
        return tuple(r.reward for r in self.rollouts if r.reward is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaeTerms:
    """What a critic's values make a sample's advantages of (`rollouts.gae`)."""

    rewards: F32
    """[L], at the tokens at which they fall due."""
    gamma: float
    lam: float
    kl_coef: float
    """Of the KL to the reference that is taken from the rewards; 0 where it is a term of the loss,
    or there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One flat trainable row; per-source settings have become per-token streams, so that the
    trainer knows no source."""

    group_id: str
    index: int
    """Rollout's place in its group."""
    token_ids: I32
    """[L]"""
    loss_mask: Bool
    """[L], true on tokens that the policy sampled."""
    rollout_logprobs: F32
    """[L], 0 where loss_mask is false."""
    advantages: F32
    """[L], 0 where loss_mask is false."""
    loss_weight: F32
    """[L]"""
    kl_coef: F32
    """[L]"""
    clip_low: F32
    """[L], NaN where the source leaves it to the loss; so is `clip_high`."""
    clip_high: F32
    """[L]"""
    temperature: F32
    """[L]"""
    gae: GaeTerms | None = None
    """Where a critic's values are needed; `advantages` are 0 then."""
    taught: F32 | None = None
    """[L], what the source's teacher adds to the advantages; None where it has none. Apart from
    them, because no estimator and no scope scales it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Samples laid end to end for one forward pass. S may be 0: a rank without tokens still
    joins every collective."""

    token_ids: I32
    """[T]"""
    positions: I32
    """[T], counting from 0 in each segment."""
    cu_seqlens: I32
    """[S+1], segment boundaries; attention never crosses them."""
    loss_mask: Bool
    """[T]; never true on the first token of a segment, which nothing predicts."""
    rollout_logprobs: F32
    """[T]"""
    advantages: F32
    """[T]"""
    loss_weight: F32
    """[T]"""
    kl_coef: F32
    """[T]"""
    clip_low: F32
    """[T], NaN where the source leaves it to the loss; so is `clip_high`."""
    clip_high: F32
    """[T]"""
    temperature: F32
    """[T]"""
    ref_logprobs: F32 | None
    """[T], or None where no reference was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchPlan:
    """One micro-batch of one rank: which samples, and where their scores lie. Each reference is to
    a tuple with one entry a sample, in the same order."""

    samples: tuple[SampleHandle, ...]
    ref_logprobs: Ref | None = None
    """To F32 [L]."""
    advantages: Ref | None = None
    """To F32 [L] by the critic's values, or None where a sample needs none."""
    targets: Ref | None = None
    """To ValueTargets, or None where a sample needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinibatchPlan:
    """One optimizer step."""

    grid: tuple[tuple[MicroBatchPlan, ...], ...]
    """[dp][n]: as many micro-batches on every rank, empty ones where samples ran out."""
    num_loss_tokens: int
    """Loss tokens over all ranks and micro-batches; with `num_samples`, what the denominator of
    this step's loss is made of."""
    num_samples: int
    """Samples that have loss tokens, over all ranks and micro-batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateBounds:
    """What the stability guards let the optimizer steps of one training step be."""

    loss: float = math.inf
    """An optimizer step whose loss is above this is not applied."""
    grad_norm: float = math.inf
    """One whose global gradient norm, before clipping, is above this is not applied."""
    skip_non_finite: bool = False
    """Leave out a step whose loss or gradient is no number, instead of ending the run."""
    lr_factor: float = 1.0
    """Factor on the scheduled learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One training step."""

    step: int
    minibatches: tuple[MinibatchPlan, ...]
    bounds: UpdateBounds = UpdateBounds()
    keep_in: Path | None = None
    """Folder where each rank keeps what it trains on, for a replay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What training a step gave; the same on every rank."""

    policy_version: int
    """Version of the weights after the step: the number of steps trained."""
    metrics: Mapping[str, float]
    """Reduced over ranks: loss, grad_norm, lr, mismatch and ratio statistics."""
    seconds: Mapping[str, float]
    """Rank 0's time by phase."""
