"""The critic's network: a Hugging Face backbone with a scalar head."""

import deepspeed
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from configs.errors import ConfigError, Problem
from configs.model_code import code_options
from configs.schema import ModelConfig
from trainer.attention import choose_attention
from trainer.model import (
    DTYPES,
    FlatModel,
    Packing,
    check_folder,
    load_hf_config,
    prepare,
)
from trainer.zero_engine import Recompute

_CLASSIFIER = "ForSequenceClassification"


class CriticModel(FlatModel):
    """Says what return is to come from the state before each token."""

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        wanted: Tensor,
        *,
        traced: bool = False,
    ) -> Tensor:
        """Return values [T] fp32, such that position t describes the state before token t.

        Args:
            cu_seqlens: [S+1], S at least 1.
            wanted: [T] bool, tokens whose values are needed; others, and first tokens, get 0.
            traced: return a projection of each token's own state [T] instead, which is not 0 where
                a new head says 0.
        """
        hidden = self.hidden(token_ids, positions, cu_seqlens)
        at = wanted.clone()
        at[cu_seqlens[:-1]] = False
        places = at.nonzero().squeeze(1)
        head = self.network.get_submodule("score")
        said = head(hidden.index_select(0, places - 1)).squeeze(-1).float()
        if traced:
            size = hidden.shape[-1]
            wave = torch.arange(size, device=hidden.device).cos() / size**0.5
            return hidden.float() @ wave
        return torch.zeros(len(wanted), device=said.device).index_copy(0, places, said)


def load_critic(
    cfg: ModelConfig,
    *,
    packing: Packing = "packed",
    gradient_checkpointing: Recompute = "off",
    where: str = "critic.path",
) -> CriticModel:
    """Load `cfg.path` as a critic: a causal LM with a new head, which says 0 at first, or a
    sequence classifier with its own.

    Raises:
        ConfigError: it cannot be loaded, or has another number of outputs than one.
    """
    check_folder(cfg.path)
    config = load_hf_config(cfg)
    trained = any(name.endswith(_CLASSIFIER) for name in config.architectures or [])
    if trained and config.num_labels != 1:
        raise _unusable(where, f"{cfg.path} is a classifier of {config.num_labels} outputs, not 1")
    config.num_labels = 1
    try:
        network, report = AutoModelForSequenceClassification.from_pretrained(
            cfg.path,
            config=config,
            dtype=DTYPES[cfg.dtype],
            use_safetensors=True,
            **code_options(cfg),
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise _unusable(where, f"{cfg.path} cannot be loaded: {error}") from error
    if not isinstance(getattr(network, "score", None), nn.Linear):
        raise _unusable(where, f"{cfg.path}: {type(network).__name__} has no linear `score` head")
    missing = set(report["missing_keys"])
    new_head = {"score.weight", "score.bias"}
    if missing - new_head or (trained and missing):
        listed = ", ".join(sorted(missing)[:3])
        raise _unusable(where, f"{cfg.path} has no trained {listed}")
    if missing:
        _zero(network.score)
    prepare(network, gradient_checkpointing)
    attention = choose_attention(network, on_cuda=torch.cuda.is_available())
    return CriticModel(network, packing=packing, attention=attention)


def check_vocabulary(policy: ModelConfig, critic: ModelConfig) -> None:
    """Raise ConfigError unless the critic reads token ids as the policy does."""
    try:
        ours, theirs = (
            AutoTokenizer.from_pretrained(cfg.path, **code_options(cfg)).get_vocab()
            for cfg in (policy, critic)
        )
    except (OSError, ValueError) as error:
        raise _unusable("critic.path", f"{critic.path} has no usable tokenizer: {error}") from error
    if differ := len(ours.items() ^ theirs.items()):
        raise ConfigError(
            Problem(
                where="critic.path",
                what=f"{critic.path} has another vocabulary than {policy.path}: {differ} entries "
                "differ, and it would read other text than the policy wrote",
                fix="Give a model with the policy's tokenizer, or leave critic.path empty.",
            )
        )


def _zero(head: nn.Linear) -> None:
    """Make a new head say 0: the first advantages are the rewards to go, whatever the seed."""
    own = list(head.parameters())
    partitioned = [p for p in own if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0), torch.no_grad():
        for parameter in own:
            parameter.zero_()


def _unusable(where: str, what: str) -> ConfigError:
    fix = "Give a Hugging Face causal LM, or a sequence classifier of one output."
    return ConfigError(Problem(where=where, what=what, fix=fix))
