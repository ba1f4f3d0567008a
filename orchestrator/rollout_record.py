"""Which of a step's groups are written down for people, and by whom: tokens go from actor to
actor, the driver passes references on."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from configs.schema import RunConfig
from orchestrator.cluster import Cluster
from rollouts.packing import plan_minibatches
from rollouts.types import GroupSummary, TrainBatch


def choose(groups: Sequence[GroupSummary], count: int) -> tuple[GroupSummary, ...]:
    """Return up to `count` groups, of each source in turn, in the order in which they came."""
    by_source: dict[str, list[GroupSummary]] = {}
    for group in groups:
        by_source.setdefault(group.source, []).append(group)
    in_turn = [g for row in zip_longest(*by_source.values()) for g in row if g is not None]
    return tuple(in_turn[:count])


async def record_rollouts(
    cfg: RunConfig, cluster: Cluster, path: Path, step: int, groups: Sequence[GroupSummary]
) -> None:
    """Write some of a step's groups down; before it is trained, while the trainer still holds the
    policy that their logprobs are compared with."""
    chosen = choose(groups, cfg.logging.rollout_groups)
    if not chosen:
        return
    spelled = await cluster.rollout.spell(chosen)
    scores: Sequence[object] = ()
    samples = [s for g in chosen for s in g.samples]
    if cfg.logging.trainer_logprobs and any(s.num_loss_tokens for s in samples):
        minibatches = plan_minibatches(
            samples,
            dp=cluster.trainer.dp_size,
            num_minibatches=1,
            max_tokens=cfg.batch.max_tokens_per_microbatch,
        )
        plan = TrainBatch(step=step, minibatches=minibatches)
        scores = await cluster.trainer.sample_logprobs(plan)
    await cluster.reward.record(path, step, chosen, spelled, scores)
