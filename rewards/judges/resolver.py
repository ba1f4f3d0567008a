"""Names resolved for one endpoint: what leads where it may not is refused at every connection, so
that a name cannot change its mind after it was checked."""

from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult

from configs.addresses import Reach, reach_of
from rewards.judges.request import JudgeRejected


class FencedResolver(ThreadedResolver):
    """Resolves as the machine does.

    Args:
        host: of the endpoint; other names are proxies', which the machine's owner chose.
        private: let it lead to this machine or a private network.
    """

    def __init__(self, host: str, *, private: bool):
        super().__init__()
        self._host, self._private = host, private

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            JudgeRejected: the endpoint's name leads where it may not.
        """
        found = await super().resolve(host, port, family)  # type: ignore[arg-type]
        for address in found if host == self._host else ():
            reach = reach_of(address["host"])
            if reach is Reach.FORBIDDEN or (reach is Reach.PRIVATE and not self._private):
                raise JudgeRejected(f"{host} leads to {address['host']}, {refusal(reach)}")
        return found


def refusal(reach: Reach) -> str:
    """Return why an address is refused, and what could be done."""
    if reach is Reach.FORBIDDEN:
        return "where no judge may be: link-local, metadata and the like are never called"
    return "a private address: set the endpoint's `private: true` if it is meant"
