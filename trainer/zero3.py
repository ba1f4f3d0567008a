"""Loading a model under ZeRO-3 without ever holding it whole on one device."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import JsonValue
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config


@dataclass(frozen=True, kw_only=True)
class _Zero3Config:
    """What transformers asks of its HfDeepSpeedConfig, which itself needs `accelerate`."""

    config: Mapping[str, JsonValue]

    def is_zero3(self) -> bool:
        return True


@contextmanager
def partitioned_loading(settings: Mapping[str, JsonValue]) -> Iterator[None]:
    """Make `from_pretrained` build under deepspeed.zero.Init and partition tensors as it reads.

    Args:
        settings: DeepSpeed's configuration, with stage 3.
    """
    holder = _Zero3Config(config=settings)  # transformers keeps a weak reference alone
    set_hf_deepspeed_config(holder)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
