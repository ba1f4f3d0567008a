"""Teachers of a run, declared by name, and what a source learns from one."""

from configs.base import Config, Name, PositiveFloat, PositiveInt
from configs.engines import ActorsConfig, ModelConfig


class TeacherConfig(Config):
    """A frozen causal LM with the policy's tokenizer, in an actor group of its own."""

    model: ModelConfig
    """The teaching model; its chat template is not used, as it scores the policy's own tokens."""
    actors: ActorsConfig = ActorsConfig()
    """Its actors, a copy of the model each."""
    max_tokens_per_batch: PositiveInt = 16384
    """Packed tokens of one forward pass."""
    timeout_s: PositiveFloat = 300.0
    """Seconds that scoring one group may take, the wait for an actor included."""


class DistillConfig(Config):
    """On-policy distillation: each sampled token is rewarded by how much more the teacher likes it
    than the policy does, which lowers the reverse KL (arXiv:2306.08543, arXiv:2306.13649)."""

    teacher: Name
    """Name under `teachers`."""
    coef: PositiveFloat = 1.0
    """Factor on log(teacher / sampler), which is added to each token's advantage."""
    max_gap: PositiveFloat | None = None
    """Largest |log(teacher / sampler)| of a token that counts; empty for no bound."""


Teachers = dict[Name, TeacherConfig]
