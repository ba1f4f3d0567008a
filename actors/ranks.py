"""How the ranks of one group meet, and what they wrote together."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path


def join_ranks(
    group: str, store: tuple[str, int], *, rank: int, world_size: int, timeout_s: float
) -> None:
    """Join torch.distributed's default group of this process through the run's store.

    Args:
        group: keeps the group apart from others in the store.
        store: host and port.
    """
    import torch

    # Public and documented, but not in the package's own list of names.
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    timeout = timedelta(seconds=timeout_s)
    host, port = store
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(group, TCPStore(host, port, is_master=False, timeout=timeout)),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def file_sizes(folder: Path) -> Mapping[str, int]:
    """Return the bytes of every file below a folder that this process sees."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
