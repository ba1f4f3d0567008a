"""Environments by name, refused before anything starts when they do not fit."""

from pathlib import Path

import pytest

from configs.data import DataConfig
from configs.errors import ConfigError
from configs.plug import PlugConfig
from configs.schema import RewardConfig, SourceConfig
from environments.environment import Environment, SingleTurn
from environments.registry import environment_factory, validate_environments

MODULE = """
from environments.environment import Environment, StepOutput
class Guess(Environment):
    def __init__(self, high: int = 10):
        self.high = high
    async def reset(self, task): return task.prompt
    async def step(self, reply): return StepOutput(done=True)
class Half(Environment):
    async def reset(self, task): return task.prompt
class Other: pass
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env_plugs_for_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_each_call_makes_a_fresh_one() -> None:
    make = environment_factory(PlugConfig(use="single_turn"))
    first, second = make(), make()
    assert isinstance(first, SingleTurn) and first is not second


def test_module_class_with_arguments() -> None:
    made = environment_factory(PlugConfig(use="env_plugs_for_test:Guess", args={"high": 3}))()
    assert isinstance(made, Environment) and vars(made) == {"high": 3}


@pytest.mark.parametrize(
    ("plug", "words"),
    [
        (PlugConfig(use="single_trun"), "Did you mean `single_turn`?"),
        (PlugConfig(use="env_plugs_for_test:Other"), "not a class derived"),
        (PlugConfig(use="env_plugs_for_test:Half"), "does not implement `step`"),
        (PlugConfig(use="env_plugs_for_test:Guess", args={"hig": 3}), "Did you mean `high`?"),
        (PlugConfig(use="env_plugs_for_test:Guess", args={"high": "x"}), "args.high"),
    ],
)
def test_what_does_not_fit_is_refused(plug: PlugConfig, words: str) -> None:
    source = SourceConfig(
        name="s",
        data=DataConfig(jsonl="x"),
        environment=plug,
        rewards=(RewardConfig(name="r", use="exact"),),
    )
    with pytest.raises(ConfigError, match=r"sources\.s\.environment") as caught:
        environment_factory(plug, where="sources.s.environment")
    (problem,) = validate_environments([source])
    assert str(problem) == str(caught.value) and words in str(problem)
