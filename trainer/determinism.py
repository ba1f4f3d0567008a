"""Bitwise the same numbers from the same input, in this process."""

import torch


def make_deterministic() -> None:
    """Have torch choose deterministic kernels, and raise where an operation has none.

    The number of threads and `CUBLAS_WORKSPACE_CONFIG`, on which sums depend too, are in the
    process's environment (`orchestrator.cluster`).
    """
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
