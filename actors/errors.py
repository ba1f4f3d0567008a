"""What goes wrong with actors, named: role, index, node, what was asked, and the cause."""

from configs.redact import redact


class RunError(Exception):
    """A run that cannot go on. The command line prints the message and exits 1."""

    def __init__(self, message: str):
        super().__init__(redact(message))


class ActorFailure(RunError):
    """An actor died, fell silent, or raised.

    Args:
        actor: `role[index]`, e.g. `rollout[0]`.
        node: address of the node it ran on.
        doing: what was asked of it, e.g. `train_step 12`.
        cause: one line.
        remedy: what to do; empty where nothing general can be said.
    """

    def __init__(self, *, actor: str, node: str, doing: str, cause: str, remedy: str = ""):
        self.actor, self.node, self.doing, self.cause, self.remedy = (
            actor,
            node,
            doing,
            redact(cause),
            remedy,
        )
        tail = f"\n    {remedy}" if remedy else ""
        super().__init__(f"{actor} on {node}, {doing}: {self.cause}{tail}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.actor, self.node, self.doing, self.cause, self.remedy))


def _rebuild(actor: str, node: str, doing: str, cause: str, remedy: str) -> ActorFailure:
    return ActorFailure(actor=actor, node=node, doing=doing, cause=cause, remedy=remedy)


def last_line(error: BaseException) -> str:
    """Return what an error's message ends in, without a trace; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__
