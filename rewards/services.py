"""What the evaluation of a grader may ask for."""

from typing import Protocol

from rewards.judges.client import Judge
from rewards.judges.panel import Panel, RewardModel
from rewards.score import Score
from rewards.subject import Subject


class Services(Protocol):
    """Given by the reward actor, the command line and the bench."""

    @property
    def judges(self) -> Panel[Judge]:
        """Judges that graders may ask."""
        ...

    @property
    def reward_models(self) -> Panel[RewardModel]:
        """Reward models that graders may ask."""
        ...

    async def compute(self, path: str, subject: Subject) -> Score:
        """Have the COMPUTE grader at `path` grade in a killable process.

        Raises:
            GradeFailed: it could not judge, took too long, or its process died.
        """
        ...
