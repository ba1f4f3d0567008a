"""The judges and reward models that graders may ask, by name."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from configs.judges import JudgeConfig
from rewards.judges.cache import ReplyCache
from rewards.judges.client import Judge
from rewards.judges.endpoint import EndpointTransport
from rewards.judges.request import Transport
from rewards.score import FailureKind, GradeFailed
from rollouts.types import Message

T = TypeVar("T")


class RewardModel(Protocol):
    """A way to one reward model."""

    async def score(self, conversation: Sequence[Message]) -> float:
        """Return the model's number for a conversation that ends with the answer.

        Raises:
            GradeFailed: there is none.
        """
        ...


class Panel(Generic[T]):
    """What is declared under one section, by name."""

    def __init__(self, section: str, members: Mapping[str, T]):
        self.section, self.members = section, members

    def __getitem__(self, name: str) -> T:
        """Return the member called `name`.

        Raises:
            GradeFailed: nothing is declared by that name; nothing is called for it.
        """
        if name not in self.members:
            near = difflib.get_close_matches(name, list(self.members), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise GradeFailed(FailureKind.JUDGE_SERVER, f"{self.section} has no {name!r}{hint}")
        return self.members[name]


NO_JUDGES: Panel[Judge] = Panel("judges", {})
NO_REWARD_MODELS: Panel[RewardModel] = Panel("reward_models", {})


def open_judges(
    judges: Mapping[str, JudgeConfig],
    engines: Callable[[str, JudgeConfig], Transport],
    *,
    share: int = 1,
) -> Panel[Judge]:
    """Return the judges, ready to be asked.

    Args:
        engines: makes the way to a judge that runs on engines of our own.
        share: processes that ask them at the same time; each has its part of the limit.

    Raises:
        ConfigError: the key of an endpoint is not in the environment.
    """
    return Panel("judges", {name: _open(name, cfg, engines, share) for name, cfg in judges.items()})


async def close_judges(panel: Panel[Judge]) -> None:
    """Give up what is in flight, and free connections."""
    for judge in panel.members.values():
        await judge.close()


def _open(
    name: str, cfg: JudgeConfig, engines: Callable[[str, JudgeConfig], Transport], share: int
) -> Judge:
    if cfg.endpoint is not None:
        transport: Transport = EndpointTransport(name, cfg.endpoint, max_tokens=cfg.max_tokens)
    else:
        transport = engines(name, cfg)
    folder = None if cfg.cache.folder is None else Path(cfg.cache.folder).expanduser()
    cache = ReplyCache(cfg.cache.entries, folder)
    return Judge(name, cfg, transport, cache=cache, limit=max(1, cfg.concurrency // share))
