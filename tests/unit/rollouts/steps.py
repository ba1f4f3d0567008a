"""A step's graded groups as the reward actors would leave them: samples apart, summaries."""

from configs.schema import RunConfig
from rollouts.advantages import resolve_advantage
from rollouts.samples import credit_group, to_training_samples
from rollouts.scopes import (
    estimator_plug,
    sample_handle,
    scale_advantages,
    scaled,
)
from rollouts.types import GroupSummary, RolloutGroup, SampleHandle, TrainingSample
from tests.made_groups import made_group, made_rollout


class GradedStep:
    """Groups of a recipe's sources, in the order in which they were added."""

    def __init__(self, cfg: RunConfig):
        self.cfg = cfg
        self.samples: dict[tuple[object, int], TrainingSample] = {}
        self.groups: list[GroupSummary] = []

    def add_group(self, group: RolloutGroup) -> None:
        """Credit a group and keep its samples."""
        request, number = group.request, len(self.groups)
        cfg = self.cfg.source(request.task.source)
        credits = credit_group(group, cfg, resolve_advantage(estimator_plug(cfg)))
        handles: list[SampleHandle] = []
        for row, sample in enumerate(to_training_samples(group, cfg, 0.0, credits)):
            self.samples[number, row] = sample
            handles.append(sample_handle(sample, ref=number, row=row))
        rollouts = [
            made_rollout(r.reward, r.num_completion_tokens, status=r.status) for r in group.rollouts
        ]
        self.groups.append(
            made_group(rollouts, group_id=request.group_id, source=cfg.name, samples=handles)
        )

    def planned(self) -> list[SampleHandle]:
        """Return the samples as the step's plan is made of them."""
        return [s for g in scale_advantages(self.cfg, self.groups) for s in g.samples]

    def trained(self) -> list[list[TrainingSample]]:
        """Return each group's samples as the trainer would see them."""
        found: list[list[TrainingSample]] = [[] for _ in self.groups]
        for h in self.planned():
            assert isinstance(h.ref, int)
            sample = self.samples[h.ref, h.row]
            found[h.ref].append(scaled(sample, h.advantage_scale, h.advantage_shift))
        return found
