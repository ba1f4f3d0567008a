"""Loaded by vLLM in each of its processes (entry point `vllm.general_plugins`).

vLLM's engine core outlives a rollout actor that is killed (vllm#55510), and would hold its GPU.
Under Braid each of vLLM's processes dies with the one that started it.
"""

import ctypes
import os
import signal

OWNER = "BRAID_ENGINE_OWNER"
"""Pid of the rollout actor, set by it; vLLM used by itself in this environment is left alone."""
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies; the owner itself is Ray's to kill."""
    owner = os.environ.get(OWNER)
    if owner is None or owner == str(os.getpid()):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
