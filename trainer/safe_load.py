"""Checkpoints read as data: tensors and a few classes of DeepSpeed's, and no code that a pickle
could name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ALLOWED = (DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address)
"""What DeepSpeed's own files hold beside tensors and plain data."""


@contextmanager
def only_tensors() -> Iterator[None]:
    """Make every torch.load in this process one with `weights_only`, whatever it asks for:
    DeepSpeed's loader and converter ask for the opposite."""
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals(list(_ALLOWED)):
            yield
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before
