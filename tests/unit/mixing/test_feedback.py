"""The mixer following a policy: order of finishing, replacements, resume."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.mix import LimitsConfig
from configs.schema import BatchConfig, ModelConfig, RunConfig, SourceConfig
from mixing.difficulty.feedback import open_pools
from mixing.mixer import Mixer
from mixing.sources.opening import open_sources
from rollouts.filters import Verdict
from rollouts.types import GroupRequest, GroupSummary

Play = Callable[[GroupRequest, float], GroupSummary]
Rate = Callable[[GroupRequest], float]


def instead(mixer: Mixer, request: GroupRequest) -> GroupRequest:
    """Give a group up; return what is sampled in its place."""
    mixer.casting.give_up(request.group_id)
    (fresh,) = mixer.refill(request.step, fresh=True)
    return fresh


def recipe(
    folder: Path, difficulties: dict[str, dict[str, object]], *, size: int = 30, **batch: int
) -> RunConfig:
    """Return a recipe with a JSONL source for each difficulty; row i has `rate` i / size."""
    sources: list[SourceConfig] = []
    for name, difficulty in difficulties.items():
        path = folder / f"{name}.jsonl"
        rows = [
            {"prompt": f"{name} {i}", "answer": str(i), "rate": i / size} for i in range(size + 1)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(
            SourceConfig.model_validate(
                {
                    "name": name,
                    "data": {"jsonl": str(path), "held_out": 1},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "group_size": 4,
                    "difficulty": difficulty,
                }
            )
        )
    return RunConfig(
        name="t",
        num_steps=100,
        model=ModelConfig(path="m"),
        sources=tuple(sources),
        batch=BatchConfig.model_validate({"groups_per_step": 6, **batch}),
    )


def by_answer(request: GroupRequest) -> float:
    """Pass rate of a row: from 0 to 1 over the file."""
    return int(request.task.answer or 0) / 30


class Driver:
    """What the producer and the loop do, without actors; groups finish in an order of the dice."""

    def __init__(self, mixer: Mixer, play: Play, rate: Rate, *, dice: random.Random):
        self.mixer, self.play, self.rate, self.dice = mixer, play, rate, dice
        self.pending: dict[str, GroupRequest] = {}
        self.running: list[str] = []
        self.trained: list[tuple[str, ...]] = []
        self.replaced = 0

    def order(self) -> None:
        """Have sampled what may be."""
        for request in self.mixer.order(len(self.trained)):
            self.pending[request.group_id] = request
            self.running.append(request.group_id)

    def step(self) -> None:
        """Finish groups, of any step, until the next one has its own; train it."""
        number = len(self.trained) + 1
        self.order()
        while (lineup := self.mixer.casting.lineup(number)) is None:
            self.finish_one()
        self.trained.append(lineup)
        gone = {*lineup, *self.mixer.casting.close(number).surplus}
        self.pending = {g: r for g, r in self.pending.items() if g not in gone}
        self.running = [g for g in self.running if g not in gone]

    def finish_one(self) -> None:
        """Grade any group under way."""
        group_id = self.dice.choice(self.running)
        self.running.remove(group_id)
        request = self.pending[group_id]
        verdict = self.mixer.casting.graded(self.play(request, self.rate(request)))
        if verdict is Verdict.RESAMPLE:
            self.replaced += 1
            del self.pending[group_id]
            self.order()

    def resumed(self, mixer: Mixer) -> "Driver":
        """Go on from a checkpoint: what was graded and not trained is sampled again."""
        mixer.load_state_dict(json.loads(json.dumps(self.mixer.state_dict())))
        other = Driver(mixer, self.play, self.rate, dice=self.dice)
        other.pending, other.running = dict(self.pending), list(self.pending)
        other.trained, other.replaced = list(self.trained), self.replaced
        return other


DIFFICULTIES: dict[str, dict[str, object]] = {
    "windowed": {
        "window": [0.2, 0.8],
        "easy": {"retire_after": 2, "retry_every": 15},
        "hard": {"park_after": 2, "retry_every": 6},
        "drop_zero_variance": True,
    },
    "filtered": {"drop_zero_variance": True, "max_resamples": 3},
    "plain": {},
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ahead", "bounds"), [(0, {}), (2, {}), (0, {"windowed": 4, "filtered": 1}), (1, {"plain": 3})]
)
def test_the_same_tasks_are_trained_whoever_finishes_first_and_wherever_it_was_cut(
    tmp_path: Path, play: Play, seed: int, ahead: int, bounds: dict[str, int]
) -> None:
    cfg = recipe(tmp_path, DIFFICULTIES, max_staleness=ahead)
    sources = (s.model_copy(update={"max_staleness": bounds.get(s.name)}) for s in cfg.sources)
    cfg = cfg.model_copy(update={"sources": tuple(sources)})
    whole = Driver(Mixer(cfg), play, by_answer, dice=random.Random(seed))
    for _ in range(60):
        whole.step()
    assert whole.replaced > 40
    dice = random.Random(seed + 1000)
    cut = Driver(Mixer(cfg), play, by_answer, dice=dice)
    cuts = set(dice.sample(range(60), 5))
    for step in range(60):
        if step in cuts:
            for _ in range(min(dice.randint(0, 5), len(cut.running))):
                cut.finish_one()
            cut = cut.resumed(Mixer(cfg))
        cut.step()
    assert cut.trained == whole.trained
    assert cut.mixer.difficulty("windowed") == whole.mixer.difficulty("windowed")


def test_a_step_always_ends_with_exact_shares_even_if_nothing_teaches(
    tmp_path: Path, play: Play
) -> None:
    cfg = recipe(tmp_path, DIFFICULTIES)
    driver = Driver(Mixer(cfg), play, lambda _: 1.0, dice=random.Random(0))
    for _ in range(40):
        driver.step()
        groups = driver.trained[-1]
        assert Counter(g.split("/")[0] for g in groups) == dict.fromkeys(DIFFICULTIES, 2)
        assert len({g.split("#")[0] for g in groups}) == 6
    filtered = driver.mixer.difficulty("filtered")
    assert filtered is not None and filtered.items is None and filtered.kept == 80
    assert driver.mixer.difficulty("plain") is None
    assert not any("plain" in name for name in driver.mixer.difficulty_metrics())
    dispatched = [g for step in driver.trained for g in step]
    assert len(set(dispatched)) == len(dispatched)


def test_spares_that_were_not_needed_are_trained_on_before_anything_new(
    tmp_path: Path, play: Play
) -> None:
    cfg = recipe(tmp_path, {"a": {"drop_zero_variance": True}}, groups_per_step=3)

    def rate(request: GroupRequest) -> float:
        return 0.5

    driver = Driver(
        Mixer(cfg), lambda r, _: play_mixed(play(r, rate(r))), rate, dice=random.Random(0)
    )
    for _ in range(10):
        driver.step()
    assert driver.replaced == 0
    drawn = Counter(g.split("#")[0] for step in driver.trained for g in step)
    assert set(drawn.values()) == {1} and len(drawn) == 30  # one epoch, though spares were drawn
    assert all(g.endswith("#e0a0") for step in driver.trained for g in step)


def play_mixed(summary: GroupSummary) -> GroupSummary:
    """Give the first rollout another reward than the others'."""
    import dataclasses

    first, *others = summary.rollouts
    rollouts = (
        dataclasses.replace(first, reward=1.0),
        *(dataclasses.replace(r, reward=0.0) for r in others),
    )
    return dataclasses.replace(summary, rollouts=rollouts)


def test_replaced_groups_count_for_the_window(tmp_path: Path, play: Play) -> None:
    difficulty = {
        "window": [0.2, 0.8],
        "min_live": 1,
        "min_obs": 1,
        "easy": {"retire_after": 1},
        "drop_zero_variance": True,
        "max_resamples": 1,
    }
    cfg = recipe(tmp_path, {"a": difficulty}, groups_per_step=3)
    driver = Driver(Mixer(cfg), play, lambda _: 1.0, dice=random.Random(0))
    driver.step()
    found = driver.mixer.difficulty("a")
    assert found is not None and found.items is not None
    assert driver.replaced == 3 and found.items.retired == 6
    assert found.figures() == {
        "live": 24,
        "widened": 0,
        "parked": 0,
        "retired": 6,
        "unseen": 24,
        "zero_variance_kept_total": 3,
    }
    assert driver.mixer.difficulty_metrics()["source/a/difficulty/retired"] == 6


def test_a_failed_group_keeps_its_place(tmp_path: Path, play: Play) -> None:
    cfg = recipe(tmp_path, {"a": DIFFICULTIES["windowed"]}, max_attempts=1)
    mixer = Mixer(cfg)
    requests = mixer.plan_step(1)
    again = mixer.retry(requests[2])
    assert again is not None and again.task == requests[2].task
    fresh = instead(mixer, again)
    assert fresh.task not in [r.task for r in requests]
    for request in (*requests[:2], fresh, *requests[3:]):
        mixer.casting.graded(play_mixed(play(request, 0.5)))
    assert mixer.casting.lineup(1) is not None
    mixer.casting.close(1)
    found = mixer.difficulty("a")
    assert found is not None and found.items is not None
    assert found.items.unseen == 30 - 6


def test_offline_pass_rates_choose_what_comes(tmp_path: Path, play: Play) -> None:
    difficulty = {"window": [0.3, 0.7], "pass_rate_column": "rate", "hard": {"retry_every": 1000}}
    cfg = recipe(tmp_path, {"a": difficulty}, groups_per_step=4)
    mixer = Mixer(cfg)
    rates = [
        r.task.metadata["rate"]
        for step in range(1, 4)
        for r in mixer.plan_step(step)
        if parked_is_not_due(step)
    ]
    assert all(isinstance(rate, float) and 0.3 <= rate <= 0.7 for rate in rates)


def parked_is_not_due(step: int) -> bool:
    """The first parked item is due at step 1 already: retries are spread from there on."""
    return step > 1


def test_a_curriculum_moves_with_the_mixer_and_survives_a_resume(play: Play) -> None:
    source = SourceConfig.model_validate(
        {
            "name": "sums",
            "data": {
                "procedural": "reasoning_gym/chain_sum",
                "size": 50,
                "held_out": 11,
                "curriculum": {"start": 0, "patience": 4},
            },
            "rewards": [{"name": "r", "use": "reasoning_gym"}],
            "group_size": 4,
            "difficulty": {"window": [0.3, 0.8], "drop_zero_variance": True},
        }
    )
    cfg = RunConfig(
        name="t",
        num_steps=100,
        model=ModelConfig(path="m"),
        sources=(source,),
        batch=BatchConfig(groups_per_step=4, max_staleness=1),
    )

    def rate(request: GroupRequest) -> float:
        """A policy that masters levels 0 to 2, passes half of 3, and fails above."""
        level = int(request.task.task_id.split("/L")[1].split("/")[0])
        return 1.0 if level < 3 else 0.5 if level == 3 else 0.0

    whole = Driver(Mixer(cfg), play, rate, dice=random.Random(1))
    for _ in range(40):
        whole.step()
    found = whole.mixer.difficulty("sums")
    assert found is not None and found.curriculum is not None and found.items is None
    assert found.curriculum.level in (2, 3, 4) and found.figures()["level"] >= 2
    levels = Counter(g.split("/")[2] for step in whole.trained[20:] for g in step)
    assert levels["L3"] > 0.6 * levels.total()
    cut = Driver(Mixer(cfg), play, rate, dice=random.Random(2))
    for step in range(40):
        if step in (3, 11, 26):
            cut = cut.resumed(Mixer(cfg))
        cut.step()
    assert cut.trained == whole.trained


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("limits", [{"max_epochs": 1}, {"max_items": 25}, {"max_epochs": 2}])
@pytest.mark.parametrize("limited", ["filtered", "windowed"])
def test_limits_hold_beside_windows_and_across_resumes(
    tmp_path: Path, play: Play, ahead: int, limits: dict[str, int], limited: str
) -> None:
    cfg = recipe(tmp_path, DIFFICULTIES, max_staleness=ahead)
    sources = {s.name: s for s in cfg.sources}
    sources[limited] = sources[limited].model_copy(update={"limits": LimitsConfig(**limits)})
    cfg = cfg.model_copy(update={"sources": tuple(sources.values())})
    whole = Driver(Mixer(cfg), play, by_answer, dice=random.Random(1))
    cut = Driver(Mixer(cfg), play, by_answer, dice=random.Random(7))
    for step in range(60):
        whole.step()
        if step in (5, 11, 12, 13, 30):
            cut = cut.resumed(Mixer(cfg))
        cut.step()
    assert cut.trained == whole.trained
    groups = Counter(g.split("/")[0] for step in whole.trained for g in step)
    assert groups.total() == len({g for step in whole.trained for g in step}) == 360
    assert 0 < groups[limited] <= limits.get("max_items", 30 * limits.get("max_epochs", 1))


def test_other_data_are_followed_anew_and_no_id_comes_twice(tmp_path: Path, play: Play) -> None:
    before = Driver(Mixer(recipe(tmp_path, DIFFICULTIES)), play, by_answer, dice=random.Random(1))
    for _ in range(12):
        before.step()
    state = json.loads(json.dumps(before.mixer.state_dict()))
    changed = Mixer(recipe(tmp_path, DIFFICULTIES, size=20))
    changed.load_state_dict(state)
    found = changed.difficulty("windowed")
    assert found is not None and found.items is not None
    assert found.items.unseen == found.items.live == 20
    after = Driver(changed, play, by_answer, dice=random.Random(2))
    after.trained = list(before.trained)
    for _ in range(12):
        after.step()
    groups = [g for step in after.trained for g in step]
    assert len(set(groups)) == len(groups)


def test_contradictions_with_the_data_are_all_told_at_once(tmp_path: Path) -> None:
    window: dict[str, object] = {"window": [0.2, 0.8]}
    cfg = recipe(
        tmp_path,
        {
            "large": {**window, "min_live": 31},
            "larger": {**window, "min_live": 99},
            "good": {**window, "pass_rate_column": "rate", "min_live": 30},
        },
    )
    with pytest.raises(ConfigError) as found:
        open_pools(cfg, open_sources(cfg))
    problems = found.value.problems
    assert [p.where for p in problems] == [
        "sources.large.difficulty.min_live",
        "sources.larger.difficulty.min_live",
    ]
    with pytest.raises(ConfigError) as caught:
        Mixer(cfg)
    assert [str(p) for p in caught.value.problems] == [str(p) for p in problems]
