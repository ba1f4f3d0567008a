"""The recipe: every knob of a run, typed, with its default and one sentence of meaning.

Defaults live on these fields and nowhere else. Unknown keys are errors. Values derived from
several fields are properties; checks across fields live in `configs.validate`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue, model_validator

from configs.algorithm import AlgorithmConfig
from configs.base import (
    Config,
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from configs.critic import CriticConfig
from configs.data import DataConfig
from configs.difficulty import DifficultyConfig
from configs.engines import ActorsConfig, ModelConfig, RolloutConfig
from configs.estimators import Scope, traits
from configs.graders.answers import FunctionGrader
from configs.graders.union import GraderConfig
from configs.guards import GuardsConfig
from configs.judges import Judges, RewardModels
from configs.logs import LoggingConfig
from configs.mix import LimitsConfig, MixConfig, StageConfig
from configs.monitors import GoldConfig, MonitorsConfig, WatchConfig
from configs.objective import CreditConfig, ObjectiveConfig
from configs.plug import PlugConfig
from configs.replay import ReplayConfig
from configs.sandbox import SandboxConfig
from configs.teachers import DistillConfig, Teachers
from configs.training import ReferenceConfig, TrainerConfig, WeightSyncConfig


class SamplingConfig(Config):
    """How completions are drawn. top-p and top-k are absent on purpose: they would make the
    sampler's distribution differ from the one that is trained."""

    temperature: PositiveFloat = 1.0
    """Softmax temperature; the trainer divides its logits by the same value."""
    max_tokens: PositiveInt = 512
    """Most tokens of one completion."""


class RewardConfig(Config):
    """One part of a source's reward: a function (`use`), or a grader written as data (`grader`)."""

    name: Name
    """Name of the part in metrics and rollout files."""
    use: str | None = None
    """Built-in function, or `package.module:attribute`; short for a grader of type `function`."""
    args: dict[str, JsonValue] = {}
    """Keyword arguments of `use`; checked against its signature before any actor starts."""
    grader: GraderConfig | None = None
    """A grader object, or the path of a YAML or JSON file that holds one."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    credit: CreditConfig | None = None
    """How scores of steps reach the tokens; empty credits the rollout as a whole."""

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.use is None) == (self.grader is None):
            raise ValueError("needs exactly one of `use` and `grader`")
        if self.args and self.use is None:
            raise ValueError("`args` belong to `use`; a grader has its fields")
        return self

    @property
    def definition(self) -> GraderConfig:
        """The grader, `use` being short for one of type `function`."""
        if self.grader is not None:
            return self.grader
        return FunctionGrader(type="function", name=self.name, use=self.use or "", args=self.args)


class SourceEvalConfig(Config):
    """How one source's held-out evaluation differs from `eval`; what is empty takes its value."""

    every: NonNegativeInt | None = None
    """Steps between this source's evaluations; 0 for only those at start and end."""
    n: PositiveInt | None = None
    """Held-out items asked, always the same ones."""
    samples: PositiveInt | None = None
    """Completions per held-out item."""
    temperature: NonNegativeFloat | None = None
    """Softmax temperature; 0 takes the likeliest token."""
    max_tokens: PositiveInt | None = None
    """Most tokens of one completion."""
    pass_at: tuple[PositiveInt, ...] | None = None
    """Each k of the reported pass@k."""
    pass_threshold: float | None = None
    """Reward from which a rollout counts as passed, in evaluation and in training's metrics."""


class SourceConfig(Config):
    """One environment of the mix: its tasks, how they are played, graded and weighed."""

    name: Name
    """Unique name; prefix of the source's metrics."""
    data: DataConfig
    """Where the tasks come from."""
    environment: PlugConfig = PlugConfig(use="single_turn")
    """The world a task is played in: `single_turn`, or `module:Class`."""
    rewards: tuple[RewardConfig, ...] = ()
    """Parts of the reward; may be empty where a teacher teaches the source."""
    distill: DistillConfig | None = None
    """A teacher whose word counts beside the reward, or in its place."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """How the parts are combined; empty sums them by weight."""
    gold: GoldConfig | None = None
    """A stricter grader of a slice of the rollouts, to see whether the reward can be trusted."""
    watch: WatchConfig = WatchConfig()
    """What the monitors should know of it."""
    weight: NonNegativeFloat = 1.0
    """Share of each step in `mix.unit`, relative to the other sources; 0 for none yet."""
    limits: LimitsConfig = LimitsConfig()
    """Bounds on repetition, count and share."""
    group_size: PositiveInt = 8
    """Rollouts per task (G)."""
    sampling: SamplingConfig = SamplingConfig()
    """How training completions are drawn."""
    advantage: PlugConfig = PlugConfig(use="grpo")
    """Advantage estimator: `grpo`, `mean_baseline`, `rloo`, `reinforce_pp`,
    `reinforce_pp_baseline`, `remax`, `gae` (with a critic), `grpo_process`, `none` (rewards only
    measure), or `module:function` of rewards [G] or of the group."""
    advantage_scope: Scope | None = None
    """Rollouts whose standard deviation divides advantages: `group` leaves it to the estimator,
    `source` takes the step's of this source, `batch` the step's of all sources that say so. Empty
    takes the estimator's own: `batch` for `reinforce_pp*`, `source` for `gae`, else `group`."""
    loss_weight: NonNegativeFloat = 1.0
    """Factor on this source's loss tokens."""
    truncated_loss_weight: NonNegativeFloat = 1.0
    """Further factor on those of truncated rollouts; 0 is DAPO's overlong filtering
    (arXiv:2503.14476), under which they still count in the group's statistics and as tokens."""
    kl_coef: NonNegativeFloat | None = None
    """Coefficient of the KL to the reference; empty takes `algorithm.kl.coef`."""
    clip_low: Annotated[float, Field(gt=0, le=1)] | None = None
    """How far below 1 the policy's ratio counts; empty takes the argument of `algorithm.loss`."""
    clip_high: PositiveFloat | None = None
    """How far above 1 the policy's ratio counts; empty takes the argument of `algorithm.loss`."""
    max_staleness: NonNegativeInt | None = None
    """Steps that its sampling may run ahead of training; empty takes `batch.max_staleness`."""
    instruction: str = ""
    """Text put before every prompt of the source, as a system message; empty for none."""
    eval: SourceEvalConfig = SourceEvalConfig()
    """How its held-out evaluation differs from the run's."""
    difficulty: DifficultyConfig = DifficultyConfig()
    """Which of its items are worth training on."""

    @property
    def scope(self) -> Scope:
        """Rollouts over which its advantages are normalised."""
        return self.advantage_scope or traits(self.advantage.use).scope

    @property
    def needs_values(self) -> bool:
        """Whether its advantages rest on a critic's values."""
        return traits(self.advantage.use).values

    @property
    def learns_alone(self) -> bool:
        """Whether a group of one teaches anything."""
        return self.distill is not None or traits(self.advantage.use).learns_alone

    @property
    def credits_tokens(self) -> bool:
        """Whether some part's scores of steps reach the tokens that wrote them."""
        return any(r.credit is not None and r.credit.to == "tokens" for r in self.rewards)


class BatchConfig(Config):
    """How much is trained on per step, and how far sampling may run ahead."""

    groups_per_step: PositiveInt
    """Groups (P) a step trains on, split over the sources by weight."""
    num_minibatches: PositiveInt = 1
    """Pieces a training step is cut into, with an optimizer step on each."""
    epochs_per_step: PositiveInt = 1
    """Times a training step passes over its mini-batches; the logprobs and values from before the
    step stay frozen."""
    max_tokens_per_microbatch: PositiveInt = 16384
    """Token budget (T) of one packed micro-batch on one rank."""
    packing: Literal["packed", "padded"] = "packed"
    """`packed`: segments in one row with segment-local positions; `padded`: one row a sample."""
    max_staleness: NonNegativeInt = 0
    """Steps that sampling may run ahead of training; 0 is synchronous."""
    max_attempts: PositiveInt = 3
    """Times a task whose group failed is sampled again before it is given up."""
    max_failed_groups: NonNegativeInt = 32
    """Failed groups in the whole run beyond which it stops."""

    @property
    def updates(self) -> int:
        """Optimizer steps of a training step."""
        return self.num_minibatches * self.epochs_per_step


class RewardGroupConfig(Config):
    """The graders."""

    actors: ActorsConfig = ActorsConfig()
    """Reward actors."""
    workers: PositiveInt = 1
    """Grader processes of each actor; one that hangs is killed."""
    timeout_s: PositiveFloat = 10.0
    """Seconds that grading one rollout may take."""
    retries: NonNegativeInt = 1
    """Times a failed grading is tried again before the rollout is invalid."""
    max_error_rate: Fraction = 0.2
    """Share of invalid rollouts, over the last 256 of a source, beyond which the run stops."""
    sandbox: SandboxConfig = SandboxConfig()
    """Walls and limits of tested code."""


class EvalConfig(Config):
    """Held-out evaluation; each source may differ by its own `eval`."""

    every: NonNegativeInt = 0
    """Steps between evaluations; 0 for only those at start and end."""
    at_start: bool = True
    """Evaluate before the first step."""
    at_end: bool = True
    """Evaluate after the last step."""
    n: PositiveInt | None = None
    """Held-out items asked of each source, at most; empty takes all."""
    samples: PositiveInt = 1
    """Completions per held-out item."""
    temperature: NonNegativeFloat | None = None
    """Softmax temperature, 0 takes the likeliest token; empty takes each source's for training."""
    max_tokens: PositiveInt | None = None
    """Most tokens of one completion; empty takes each source's for training."""
    pass_at: tuple[PositiveInt, ...] | None = None
    """Each k of the reported pass@k; empty takes 1, 2, 4, ... and `samples`."""
    pass_threshold: float = 1.0
    """Reward from which a rollout counts as passed, in evaluation and in training's metrics."""
    max_regression: Fraction | None = 0.1
    """Fall of a source's pass rate below its own best, beyond the standard error, that raises
    the alarm; empty never does."""
    patience: NonNegativeInt = 0
    """Evaluations without a new best held-out pass rate after which the run stops; 0 never."""
    watch: str | None = None
    """Source whose pass rate `patience` watches; empty takes the mean over the sources."""


class CheckpointConfig(Config):
    """Checkpoints for resuming."""

    every: NonNegativeInt = 0
    """Steps between checkpoints; 0 for only those at the end and at a stop."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints kept."""


class DecontaminateConfig(Config):
    """Search for training prompts that evaluation asks too, before anything starts."""

    action: Literal["refuse", "drop", "warn", "off"] = "refuse"
    """What a found training item leads to: no run, a run without it, a warning, or no search."""
    ngram: Annotated[int, Field(ge=2)] = 13
    """Words in a row that are compared; a prompt with fewer is compared whole."""
    max_overlap: Fraction = 0.5
    """Largest share of a held-out prompt's n-grams that one training prompt may have."""
    procedural: bool = False
    """Search procedural training items too; they are made for it, which takes long, and none has
    a held-out question of its own source anyway."""


class HealthConfig(Config):
    """Deadlines. Every wait of the run has one of these."""

    placement_s: PositiveFloat = 120.0
    """Seconds to wait for the cluster to have room."""
    start_s: PositiveFloat = 600.0
    """Seconds that starting all actors may take."""
    heartbeat_s: PositiveFloat = 2.0
    """Seconds between heartbeats asked of each actor."""
    silence_s: PositiveFloat = 60.0
    """Seconds without an answer after which an actor is called dead."""
    generate_s: PositiveFloat = 1800.0
    """Seconds that the groups of one step may take to arrive."""
    train_s: PositiveFloat = 1800.0
    """Seconds that one training step, or scoring its batch, may take."""
    checkpoint_s: PositiveFloat = 1800.0
    """Seconds that writing a checkpoint may take."""


class RunConfig(Config):
    """A whole run."""

    name: Name
    """Name of the run; its default directory is `runs/<name>`."""
    seed: int = 1
    """Seed of everything random."""
    deterministic: bool = False
    """Have two runs of this recipe on like machines give the same metrics, bit for bit, at the cost
    of speed: see docs/stability.md."""
    num_steps: PositiveInt
    """Training steps."""
    ray_address: str | None = None
    """Cluster to join (`auto` or host:port); empty starts a private one on this machine."""
    allow_unauthenticated_ray: bool = False
    """Join a Ray cluster without token authentication, on which whoever reaches its ports can run
    code; refused otherwise."""
    model: ModelConfig
    """The policy."""
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    """The mix."""
    mix: MixConfig = MixConfig()
    """How weights become groups."""
    stages: tuple[StageConfig, ...] = ()
    """Parts of the run with shares of their own, in order."""
    batch: BatchConfig
    """Batch arithmetic."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """The objective."""
    rollout: RolloutConfig = RolloutConfig()
    """Generation engines."""
    reward: RewardGroupConfig = RewardGroupConfig()
    """Graders."""
    judges: Judges = {}
    """Judges that graders may name, by that name."""
    reward_models: RewardModels = {}
    """Reward models that graders may name, by that name."""
    teachers: Teachers = {}
    """Teachers that sources may learn from, by that name."""
    reference: ReferenceConfig = ReferenceConfig()
    """Frozen reference."""
    trainer: TrainerConfig = TrainerConfig()
    """Training group."""
    critic: CriticConfig = CriticConfig()
    """Critic."""
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    """Trainer to engines."""
    eval: EvalConfig = EvalConfig()
    """Held-out evaluation."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """Training against held-out prompts."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    monitors: MonitorsConfig = MonitorsConfig()
    """Alarms at reward hacking."""
    guards: GuardsConfig = GuardsConfig()
    """Stability guards, and what an alarm leads to."""
    logging: LoggingConfig = LoggingConfig()
    """Logs."""
    replay: ReplayConfig = ReplayConfig()
    """Batches kept to be trained on again."""
    health: HealthConfig = HealthConfig()
    """Deadlines."""

    def source(self, name: str) -> SourceConfig:
        """Return the source called `name`; KeyError if there is none."""
        return {s.name: s for s in self.sources}[name]

    @property
    def constant_tokens(self) -> int:
        """Tokens that aggregation `constant` counts for each sample."""
        return self.algorithm.constant_tokens or max(s.sampling.max_tokens for s in self.sources)

    def kl_coef(self, source: SourceConfig) -> float:
        """Return the source's KL coefficient, its own or the algorithm's."""
        return self.algorithm.kl.coef if source.kl_coef is None else source.kl_coef

    def max_staleness(self, source: SourceConfig) -> int:
        """Return how many steps the source's sampling may run ahead of training."""
        own = source.max_staleness
        return self.batch.max_staleness if own is None else own

    @property
    def most_ahead(self) -> int:
        """How many steps sampling may run ahead of training, for any source."""
        return max(self.max_staleness(s) for s in self.sources)

    @property
    def reference_is_start(self) -> bool:
        """Whether the reference, where there is one, is the policy that the run began with."""
        return self.reference.path is None and self.reference.refresh is None

    @property
    def needs_reference(self) -> bool:
        """Whether any source is held to the reference policy."""
        return any(self.kl_coef(s) > 0 for s in self.sources)

    @property
    def needs_critic(self) -> bool:
        """Whether any source's advantages rest on values."""
        return any(s.needs_values for s in self.sources)

    @property
    def policy_updates(self) -> int:
        """Optimizer steps of the policy in the whole run, at most."""
        warmup = self.critic.warmup_steps if self.needs_critic else 0
        return max(1, self.num_steps - warmup) * self.batch.updates

    @property
    def of_critic(self) -> "RunConfig":
        """The run as the critic's engine reads it, with its model and training section."""
        own = self.critic
        fields = ("actors", "zero_stage", "offload", "gradient_checkpointing", "optimizer")
        changes = {f: getattr(own, f) for f in fields} | {
            "lora": None,
            "nvme": None,
            "sequence_parallel": 1,
        }
        trainer = self.trainer.model_copy(update=changes)
        model = self.model
        if own.path not in (None, model.path):  # whose code nobody has pinned
            model = model.model_copy(update={"path": own.path, "trust_remote_code": None})
        return self.model_copy(update={"model": model, "trainer": trainer})


def dump(cfg: BaseModel) -> dict[str, Any]:
    """Return the resolved config as plain YAML-ready data."""
    return cfg.model_dump(mode="json")
