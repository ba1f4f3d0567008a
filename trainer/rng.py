"""Random generator states as plain JSON: python, numpy, torch and CUDA of this process."""

import json
import random
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict


class RngState(BaseModel):
    """All generators' states; byte states in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: tuple[int, tuple[int, ...], float | None]
    numpy_keys: tuple[int, ...]
    numpy_rest: tuple[int, int, float]
    """Position, whether a Gaussian is cached, and that Gaussian."""
    torch_cpu: str
    torch_cuda: str | None


_PythonState: TypeAlias = tuple[int, tuple[int, ...], float | None]


def capture() -> RngState:
    """Read the states of this process."""
    python: _PythonState = random.getstate()
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    if name != "MT19937":
        raise RuntimeError(f"numpy's global generator is {name}, not MT19937")
    cuda = None
    if torch.cuda.is_available():
        cuda = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return RngState(
        python=python,
        numpy_keys=tuple(int(k) for k in keys),
        numpy_rest=(int(position), int(has_gauss), float(gauss)),
        torch_cpu=torch.get_rng_state().numpy().tobytes().hex(),
        torch_cuda=cuda,
    )


def restore(state: RngState) -> None:
    """Set the states of this process."""
    random.setstate(state.python)
    position, has_gauss, gauss = state.numpy_rest
    keys = np.array(state.numpy_keys, dtype=np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))
    torch.set_rng_state(_bytes(state.torch_cpu))
    if state.torch_cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state.torch_cuda))


def write(path: Path) -> None:
    """Save this process's states to `path`."""
    path.write_text(json.dumps(capture().model_dump(mode="json")))


def read(path: Path) -> None:
    """Set this process's states from `path`."""
    restore(RngState.model_validate_json(path.read_text()))


def _bytes(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytes.fromhex(text), dtype=np.uint8).copy())
