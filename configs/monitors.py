"""The sections that say what is watched for reward hacking while a run trains."""

from typing import Annotated

from pydantic import Field

from configs.base import Config, Fraction, Name, NonNegativeFloat, PositiveFloat, PositiveInt, Share
from configs.graders.union import GraderConfig
from configs.guards import Remedy


class GoldConfig(Config):
    """A stricter grader that is asked about a slice of training's rollouts; never trained on."""

    grader: GraderConfig
    """A grader object, or the path of a YAML or JSON file that holds one."""
    fraction: Share = 0.1
    """Share of the rollouts with a reward that it grades, chosen by a hash."""
    weight: float = 1.0
    """Factor that brings its score to the scale of the reward."""


class WatchConfig(Config):
    """What of a source the monitors cannot know by themselves."""

    format: Name | None = None
    """Part of the reward that says whether the format is right; empty takes `well_formed`."""
    compare: tuple[Name, Name] | None = None
    """Two parts that should agree: the one that may be fooled (a judge), the one to trust."""


class MonitorConfig(Config):
    """What every monitor has."""

    enabled: bool = True
    """Whether it watches."""
    action: Remedy = "warn"
    """`stop` ends the run, with a checkpoint, while its alarm stands; `shrink` and `rollback` are
    those of `guards`."""


class GapMonitorConfig(MonitorConfig):
    """Alarm when a score that may be fooled gains on one to trust."""

    margin: NonNegativeFloat = 0.1
    """Least growth of the gap, in units of the reward."""
    min_share: Fraction = 0.5
    """Share of the first score's rise that keeps the alarm silent when the second rose so too."""


class HeldOutMonitorConfig(GapMonitorConfig):
    """Alarm when training's reward rises and the held-out one stays."""

    evaluations: PositiveInt = 2
    """Evaluations in a row that must show it."""


class LengthMonitorConfig(MonitorConfig):
    """Alarm when longer answers earn more, and answers grow."""

    correlation: Fraction = 0.2
    """Least mean correlation of reward and length within groups."""
    growth: PositiveFloat = 0.3
    """Least growth of the mean length, as a share of its start."""


class AnswersMonitorConfig(MonitorConfig):
    """Alarm when different tasks get the same answer more often than at the start and than their
    references do."""

    margin: Fraction = 0.2
    """Least rise of the chance that two tasks get the same answer."""
    unknown: Fraction = 0.5
    """That chance among the references, where tasks have none."""


class RepetitionMonitorConfig(MonitorConfig):
    """Alarm when texts repeat themselves more than at the start."""

    margin: Fraction = 0.15
    """Least rise of the share of repeated word triples, or of rollouts that loop."""


class FormatMonitorConfig(MonitorConfig):
    """Alarm when fewer rollouts have the right format than at their best."""

    margin: Fraction = 0.15
    """Least fall of that share."""


class TamperingMonitorConfig(MonitorConfig):
    """Alarm when the sandbox saw attempts to tamper with the grading."""

    attempts: PositiveInt = 3
    """Attempts within the window."""


class KLMonitorConfig(MonitorConfig):
    """Alarm when the policy is far from its start; silent where no reference runs."""

    bound: PositiveFloat = 1.0
    """Most `train/kl_ref`, in nats a token."""


class MonitorsConfig(Config):
    """Alarms while training."""

    window: Annotated[int, Field(ge=3)] = 5
    """Steps at the start, and latest steps, whose means are compared."""
    persist: PositiveInt = 3
    """Steps in a row that must show it before an alarm is raised, or cleared."""
    sigmas: PositiveFloat = 4.0
    """Standard errors that a change must exceed beside its margin."""
    gold: GapMonitorConfig = GapMonitorConfig()
    """Reward against the source's `gold` grader."""
    disagreement: GapMonitorConfig = GapMonitorConfig()
    """The two parts of the source's `watch.compare`."""
    held_out: HeldOutMonitorConfig = HeldOutMonitorConfig()
    """Training's reward against the held-out one."""
    length: LengthMonitorConfig = LengthMonitorConfig()
    """Reward against length."""
    answers: AnswersMonitorConfig = AnswersMonitorConfig()
    """Concentration of answers."""
    repetition: RepetitionMonitorConfig = RepetitionMonitorConfig()
    """Repeated text."""
    format: FormatMonitorConfig = FormatMonitorConfig()
    """Drift of the format."""
    tampering: TamperingMonitorConfig = TamperingMonitorConfig()
    """Attempts seen by the sandbox."""
    canary: MonitorConfig = MonitorConfig()
    """Known-wrong solutions that passed all tests (`canary` of the grader `code_tests`)."""
    kl: KLMonitorConfig = KLMonitorConfig()
    """Distance from the start."""
