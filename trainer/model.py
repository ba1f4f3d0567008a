"""The policy network: a Hugging Face causal LM that returns logprobs instead of logits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from configs.errors import ConfigError, Problem
from configs.model_code import code_options
from configs.schema import ModelConfig
from trainer.attention import SEGMENTS, Attention, choose_attention
from trainer.logprobs import LogprobHead, score_tokens

Packing = Literal["packed", "padded"]
ScoreRow: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""Takes the place of `PolicyModel.forward` on packed rows (`trainer.sequence`)."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Config keys of models that change logits after the head, with the value that means "not at all".
_LOGIT_POST_PROCESSING = {
    "final_logit_softcapping": None,
    "logit_softcapping": None,
    "logits_soft_cap": None,
    "output_logits_soft_cap": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "output_logit_scale": 1.0,
    "lm_head_multiplier": 1.0,
    "dim_model_base": None,
}


class FlatModel(nn.Module):
    """A backbone over flat token streams; dropout is off in every mode."""

    def __init__(self, network: PreTrainedModel, *, packing: Packing, attention: Attention) -> None:
        super().__init__()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.network = network
        self.packing = packing
        self.attention: Attention = "sdpa"
        self.use_attention(attention)

    def use_attention(self, attention: Attention) -> None:
        """Attend in another way from now on."""
        if attention != self.attention:
            self.network.set_attn_implementation(attention)
        self.attention = attention

    def hidden(self, token_ids: Tensor, positions: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return the last hidden states [T, H]; attention stays inside segments.

        Args:
            cu_seqlens: [S+1], S at least 1.
        """
        if self.packing == "packed":
            lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
            return self.hidden_states(token_ids, positions, lengths)
        return self._padded(token_ids, cu_seqlens)

    def hidden_states(self, token_ids: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """Run a packed row, attention staying inside segments. Returns [T, H].

        Args:
            lengths: of the segments that attention sees.
        """
        extra: dict[str, Tensor | int | tuple[int, ...]] = {}
        if self.attention == SEGMENTS:
            extra = {"segment_lengths": tuple(lengths)}
        elif self.attention == "flash_attention_2":
            ends = torch.tensor([0, *lengths], dtype=torch.int32, device=token_ids.device)
            bounds, longest = ends.cumsum(0, dtype=torch.int32), max(lengths)
            extra = {
                "cu_seq_lens_q": bounds,
                "cu_seq_lens_k": bounds,
                "max_length_q": longest,
                "max_length_k": longest,
            }
        out = self.network.base_model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            attention_mask=None,
            use_cache=False,
            **extra,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def _padded(self, token_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """One right-padded row a segment, gathered back to [T, H]."""
        lengths = cu_seqlens[1:] - cu_seqlens[:-1]
        columns = torch.arange(int(lengths.max()), device=token_ids.device)
        mask = columns.unsqueeze(0) < lengths.unsqueeze(1)
        rows = torch.zeros(mask.shape, dtype=token_ids.dtype, device=token_ids.device)
        rows[mask] = token_ids
        out = self.network.base_model(
            input_ids=rows,
            position_ids=columns.unsqueeze(0).expand_as(rows),
            attention_mask=mask.long(),
            use_cache=False,
        )
        hidden: Tensor = out.last_hidden_state[mask]
        return hidden


class PolicyModel(FlatModel):
    """A causal LM that scores tokens."""

    def __init__(
        self,
        network: PreTrainedModel,
        *,
        packing: Packing,
        logprob_chunk: int,
        attention: Attention,
        fp32_head: bool = False,
    ) -> None:
        head: Any = network.get_output_embeddings()
        _check_head(network, head)
        bias = getattr(head, "bias", None)
        scorer = LogprobHead(head.weight, logprob_chunk, bias=bias, fp32=fp32_head)
        network.set_output_embeddings(scorer)
        super().__init__(network, packing=packing, attention=attention)
        self.score_row: ScoreRow | None = None

    @property
    def head(self) -> nn.Module:
        """What turns hidden states into scores: a `LogprobHead`, under LoRA perhaps wrapped."""
        head = self.network.get_output_embeddings()
        assert head is not None, "it was put there"
        return head

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        temperature: Tensor,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (logprobs [T], entropies [T]) in fp32; position t describes token t.

        Args:
            cu_seqlens: [S+1], S at least 1.
            wanted: [T] bool, tokens whose scores are needed, or None for all; others get 0.
        """
        if self.packing == "packed" and self.score_row is not None:
            return self.score_row(token_ids, positions, cu_seqlens, temperature, wanted)
        hidden = self.hidden(token_ids, positions, cu_seqlens)
        return score_tokens(self.head, hidden, token_ids, cu_seqlens, temperature, wanted)


def load_policy(
    cfg: ModelConfig,
    *,
    packing: Packing = "packed",
    logprob_chunk: int = 1024,
    gradient_checkpointing: Literal["off", "reentrant", "non_reentrant"] = "off",
    device: torch.device | None = None,
) -> PolicyModel:
    """Load `cfg.path`; ConfigError if it is missing, has no tokenizer, or changes its logits."""
    check_tokenizer(cfg)
    config = load_hf_config(cfg)
    try:
        network = AutoModelForCausalLM.from_pretrained(
            cfg.path,
            config=config,
            dtype=DTYPES[cfg.dtype],
            use_safetensors=True,
            **code_options(cfg),
        )
    except (OSError, ValueError) as error:
        raise _unusable(cfg.path, f"cannot be loaded as a causal LM: {error}") from error
    prepare(network, gradient_checkpointing)
    on_cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
    model = PolicyModel(
        network,
        packing=packing,
        logprob_chunk=logprob_chunk,
        attention=choose_attention(network, on_cuda=on_cuda),
        fp32_head=cfg.fp32_head,
    )
    return model if device is None else model.to(device)


def prepare(
    network: PreTrainedModel, gradient_checkpointing: Literal["off", "reentrant", "non_reentrant"]
) -> None:
    """Set recomputation, and the training mode that it needs; dropout is 0 everywhere."""
    if gradient_checkpointing != "off":
        network.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": gradient_checkpointing == "reentrant"}
        )
    network.train()


def load_hf_config(cfg: ModelConfig) -> PretrainedConfig:
    """Load the architecture's config with dropout set to 0; ConfigError if we cannot train it."""
    check_folder(cfg.path)
    try:
        config = AutoConfig.from_pretrained(cfg.path, **code_options(cfg))
    except (OSError, ValueError) as error:
        raise _unusable(cfg.path, f"has no usable config.json: {error}") from error
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    for name, neutral in _LOGIT_POST_PROCESSING.items():
        value = getattr(config, name, None)
        if value is not None and value != neutral:
            raise _unusable(
                cfg.path,
                f"changes its logits after the head ({name}={value}), which the chunked "
                "logprobs do not follow",
            )
    return config


def check_folder(path: str) -> None:
    """Raise ConfigError if `path` looks like a folder and is none."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).is_dir():
        raise _unusable(path, "is not a folder")


def check_tokenizer(cfg: ModelConfig) -> None:
    """Raise ConfigError naming the path if the model comes without a tokenizer."""
    check_folder(cfg.path)
    folder = Path(cfg.path)
    known = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "tokenizer_config.json",
    )
    if folder.is_dir():
        if not any((folder / name).is_file() for name in known):
            raise _unusable(cfg.path, f"has no tokenizer (none of {', '.join(known)})")
        return
    try:
        AutoTokenizer.from_pretrained(cfg.path, **code_options(cfg))
    except (OSError, ValueError) as error:
        raise _unusable(cfg.path, f"has no usable tokenizer: {error}") from error


def _check_head(network: PreTrainedModel, head: nn.Module | None) -> None:
    path = str(getattr(network.config, "_name_or_path", ""))
    if head is None or not isinstance(getattr(head, "weight", None), nn.Parameter):
        raise _unusable(path, "has no linear output head")
    if network.base_model is network:
        raise _unusable(path, "is not a body under an output head, which the logprobs need")


def _unusable(path: str, what: str) -> ConfigError:
    return ConfigError(
        Problem(
            where="model.path",
            what=f"{path!r} {what}",
            fix="give a folder or hub name of a Hugging Face causal LM with its tokenizer.",
        )
    )
