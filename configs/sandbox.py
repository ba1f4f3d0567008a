"""The sandbox of model-written code, and of graders that run code of their own on model text."""

from typing import Literal

from configs.base import Config, PositiveFloat, PositiveInt


class SandboxConfig(Config):
    """Which walls tested code must run behind, and what one run of it may use."""

    require: Literal["any", "landlock", "bwrap"] = "landlock"
    """Weakest tier allowed; `any` takes limits alone, which stop no code that means harm."""
    cpu_s: PositiveFloat = 5.0
    """CPU seconds of one run; it may take twice that and one second on the clock."""
    memory_mb: PositiveInt = 512
    """Memory of one run, all its processes together."""
    processes: PositiveInt = 1
    """Processes of one run; 1 forbids starting any. Commands of code tests need more."""
    output_kb: PositiveInt = 1024
    """Most that one run may write to stdout, to stderr, or return."""
    disk_mb: PositiveInt = 64
    """Size of the folder that one run may write to, which is empty at its start."""
    files: PositiveInt = 1024
    """Files in it."""
