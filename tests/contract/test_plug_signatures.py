"""What is plugged in has the shape that docs and type say: built-ins, and a user's own."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import ConfigError
from configs.plug import PlugConfig
from configs.schema import SourceConfig
from environments.environment import Environment
from environments.registry import BUILT_IN as ENVIRONMENTS
from environments.registry import validate_environments
from rewards.graders import BUILT_IN as GRADERS
from rewards.graders import validate_rewards
from rollouts.advantages import BUILT_IN as ADVANTAGES
from rollouts.advantages import estimates_tokens, validate_advantages
from rollouts.credit import GroupCredit, PartCredit


def parameters(function: Callable[..., object]) -> tuple[list[str], list[inspect.Parameter]]:
    """Return the names of positional parameters, and the keyword-only ones."""
    found = inspect.signature(function).parameters.values()
    positional = [p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]
    return positional, [p for p in found if p.kind is p.KEYWORD_ONLY]


@pytest.mark.parametrize("name", GRADERS)
def test_a_grader_takes_rollout_and_task_and_gives_a_number(name: str):
    grader = GRADERS[name]
    positional, keywords = parameters(grader)
    assert positional == ["rollout", "task"]
    assert all(p.annotation is not p.empty for p in keywords)
    assert inspect.signature(grader).return_annotation is float
    assert grader.__doc__


@pytest.mark.parametrize("name", [n for n, a in ADVANTAGES.items() if not estimates_tokens(a)])
def test_an_advantage_maps_rewards_to_as_many(name: str):
    advantage = ADVANTAGES[name]
    assert parameters(advantage)[0] == ["rewards"]
    assert np.shape(advantage(np.array([0.0, 1.0, 1.0]))) == (3,)


@pytest.mark.parametrize("name", [n for n, a in ADVANTAGES.items() if estimates_tokens(a)])
def test_an_advantage_of_tokens_maps_a_group_to_its_tokens(name: str):
    advantage = ADVANTAGES[name]
    assert parameters(advantage)[0] == ["group"]
    values = np.array([0.0, 1.0])
    part = PartCredit(name="right", weight=1.0, values=values, steps=(None, None))
    group = GroupCredit(rewards=values, parts=(part,), num_tokens=(3, 2))
    assert [a.shape for a in advantage(group)] == [(3,), (2,)]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_is_one(name: str):
    environment = ENVIRONMENTS[name]
    assert issubclass(environment, Environment) and not inspect.isabstract(environment)
    for method in ("reset", "step"):
        assert inspect.iscoroutinefunction(getattr(environment, method))


def test_a_loss_takes_loss_inputs_and_gives_a_loss_output():
    from trainer.loss import LossInputs, LossOutput
    from trainer.objectives import BUILT_IN

    for loss in BUILT_IN.values():
        signature = inspect.signature(loss, eval_str=True)
        first, *others = signature.parameters.values()
        assert first.annotation is LossInputs
        assert all(p.kind is p.KEYWORD_ONLY and p.annotation is not p.empty for p in others)
        assert signature.return_annotation is LossOutput


MINE = """
from environments.environment import Environment, StepOutput

def exact_answer(rollout, task) -> float:
    return float(rollout.last_text.strip().endswith(task.answer))

def centred(rewards):
    return rewards - rewards.mean()

class Guess(Environment):
    async def reset(self, task):
        return task.prompt

    async def step(self, reply):
        return StepOutput(done=True)

class Half(Environment):
    async def reset(self, task):
        return task.prompt

def odd(rollout):
    return 1.0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module on the path."""
    (tmp_path / "my_plugs_of_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_plugs_of_test", raising=False)
    return "my_plugs_of_test"


def source(**plugs: object) -> SourceConfig:
    base: dict[str, object] = {
        "name": "mine",
        "data": {"procedural": "reasoning_gym/lcm"},
        "rewards": [{"use": "exact", "name": "right"}],
    }
    return SourceConfig.model_validate({**base, **plugs})


def test_a_user_s_plugs_of_a_few_lines_are_taken(mine: str):
    taken = source(
        rewards=[{"use": f"{mine}:exact_answer", "name": "right"}],
        advantage={"use": f"{mine}:centred"},
        environment={"use": f"{mine}:Guess"},
    )
    assert validate_rewards([taken]) == []
    assert validate_advantages([taken]) == []
    assert validate_environments([taken]) == []


@pytest.mark.parametrize(
    ("validate", "plugs", "where"),
    [
        (validate_rewards, {"rewards": [{"use": "{}:odd", "name": "r"}]}, "rewards"),
        (validate_rewards, {"rewards": [{"use": "{}:nope", "name": "r"}]}, "rewards"),
        (
            validate_rewards,
            {"rewards": [{"use": "{}:exact_answer", "name": "r", "args": {"x": 1}}]},
            "rewards",
        ),
        (validate_environments, {"environment": {"use": "{}:Half"}}, "environment"),
        (validate_environments, {"environment": {"use": "{}:centred"}}, "environment"),
        (validate_advantages, {"advantage": {"use": "{}:nope"}}, "advantage"),
        (
            validate_advantages,
            {"advantage": {"use": "{}:centred", "args": {"x": 1}}},
            "advantage",
        ),
    ],
)
def test_a_plug_that_does_not_fit_is_refused_before_anything_starts(
    mine: str,
    validate: Callable[[list[SourceConfig]], list[object]],
    plugs: dict[str, object],
    where: str,
):
    filled = _fill(plugs, mine)
    problems = validate([source(**filled)])  # type: ignore[arg-type]
    assert len(problems) == 1
    assert where in str(problems[0])


def _fill(value: object, name: str) -> object:
    if isinstance(value, dict):
        return {k: _fill(v, name) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, name) for v in value]
    return value.replace("{}", name) if isinstance(value, str) else value


def test_a_loss_that_does_not_fit_is_refused(mine: str):
    from trainer.objectives import resolve_loss

    with pytest.raises(ConfigError):
        resolve_loss(PlugConfig(use=f"{mine}:nope"))
    with pytest.raises(ConfigError):
        resolve_loss(PlugConfig(use="ppo_clip", args={"clip_hihg": 1}))
