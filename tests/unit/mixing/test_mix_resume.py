"""Killed and resumed at random moments, any mix plans and replaces what it would have."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from configs.schema import RunConfig
from mixing.mixer import Mixer
from mixing.quota.tokens import Trained
from rollouts.types import GroupRequest

MakeRun = Callable[..., RunConfig]
STEPS = 60


def instead(mixer: Mixer, request: GroupRequest) -> GroupRequest:
    """Give a group up; return what is sampled in its place."""
    mixer.casting.give_up(request.group_id)
    (fresh,) = mixer.refill(request.step, fresh=True)
    return fresh


def random_recipe(make_run: MakeRun, rng: random.Random) -> RunConfig:
    names = [f"s{i}" for i in range(rng.randint(2, 4))]
    limits: dict[str, dict[str, float]] = {}
    all_limited = rng.random() < 0.3
    for name in names[0 if all_limited else 1 :]:
        if all_limited or rng.random() < 0.4:
            limits[name] = {"max_epochs": rng.randint(1, 4)}
        elif rng.random() < 0.4:
            limits[name] = {"max_items": rng.randint(1, 60)}
        if not all_limited and rng.random() < 0.3:
            limits.setdefault(name, {})["max_share"] = 0.5
    metric = {"metric": f"eval/{names[0]}/pass_rate", "gte": 0.6, "patience": rng.randint(1, 3)}
    stages = [
        {"until": {"step": 10}, "ramp": "linear", "weights": {names[0]: rng.uniform(0.5, 3)}},
        {"until": metric, "weights": {names[-1]: 2}, "group_size": {names[0]: 2}},
        {"until": {"step": 40}, "ramp": "linear", "weights": {names[1]: 4}},
        {"weights": {names[0]: 1}},
    ]
    return make_run(
        {name: rng.randint(2, 40) for name in names},
        weights={name: rng.choice([0.5, 1, 2, 3.3]) for name in names},
        groups=rng.randint(2, 16),
        seed=rng.randint(1, 9),
        max_staleness=rng.choice([0, 1, 3]),
        limits=limits,
        group_sizes={name: rng.choice([2, 4, 8]) for name in names},
        stages=stages if rng.random() < 0.7 else [],
        eval={"every": 5},
        mix={
            "strategy": rng.choice(["quota", "quota", "sampled"]),
            "unit": rng.choice(["groups", "samples", "loss_tokens"]),
            "temperature": rng.choice([1.0, 1.5]),
            "on_exhausted": "repeat",
        },
    )


@dataclass
class Run:
    """The loop's calls in the loop's order; `late` delays the dispatcher as a busy driver would."""

    cfg: RunConfig
    seed: int
    mixer: Mixer = field(init=False)
    planned: dict[int, list[GroupRequest]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mixer = Mixer(self.cfg)

    def fill(self, done: int) -> None:
        """Dispatch every step that may be; each third one has a failed group."""
        for step in range(done + 1, done + 2 + self.cfg.batch.max_staleness):
            if step in self.planned or step > STEPS:
                continue
            requests = list(self.mixer.plan_step(step))
            if step % 3 == 0:
                requests[0] = instead(self.mixer, requests[0])
            self.planned[step] = requests

    def train(self, step: int) -> None:
        rng = random.Random(f"{self.seed}/{step}")
        trained: dict[str, Trained] = {}
        for r in self.planned[step]:
            groups, samples, tokens = trained.get(r.task.source, Trained(0, 0, 0))
            more = rng.randint(1, 100) * r.group_size
            trained[r.task.source] = Trained(groups + 1, samples + r.group_size, tokens + more)
        self.mixer.observe_trained(step, trained)

    def evaluate(self, step: int) -> None:
        rng = random.Random(f"{self.seed}/eval/{step}")
        rates = {f"eval/{s.name}/pass_rate": rng.random() for s in self.cfg.sources}
        self.mixer.observe_eval(step, rates)

    def go(self, kills: set[int], eager: bool) -> list[list[GroupRequest]]:
        """Run all steps.

        Args:
            kills: steps after whose checkpoint the process dies and another goes on.
            eager: dispatch before the evaluation is known, as an idle driver does.
        """
        self.fill(0)
        for step in range(1, STEPS + 1):
            self.train(step)
            if eager:
                self.fill(step)
            if step % 5 == 0:
                self.evaluate(step)
            if step in kills:
                state = json.loads(json.dumps(self.mixer.state_dict()))
                self.mixer = Mixer(self.cfg)
                self.mixer.load_state_dict(state)
                if step % 5 == 0:
                    self.evaluate(step)  # a resumed run may hear of it a second time
            self.fill(step)
        return [self.planned[step] for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("seed", range(25))
def test_killed_at_five_random_moments_the_sequence_is_the_same(
    make_run: MakeRun, seed: int
) -> None:
    rng = random.Random(seed)
    cfg = random_recipe(make_run, rng)
    whole = Run(cfg, seed).go(kills=set(), eager=True)
    assert [len(step) for step in whole] == [cfg.batch.groups_per_step] * STEPS
    kills = set(rng.sample(range(1, STEPS), 5))
    assert Run(cfg, seed).go(kills, eager=True) == whole
    assert Run(cfg, seed).go(kills, eager=False) == whole


def test_the_recipes_above_do_use_stages_limits_and_restarts(make_run: MakeRun) -> None:
    kinds: set[str] = set()
    for seed in range(25):
        run = Run(random_recipe(make_run, random.Random(seed)), seed)
        run.go(kills=set(), eager=True)
        kinds |= {e.kind for e in run.mixer.take_events()}
    assert {"stage", "used_up", "again", "substituted"} <= kinds
