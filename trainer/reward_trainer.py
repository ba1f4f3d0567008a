"""A reward model under training: a sequence classifier of one output, learnt from preferences.

It is the policy's engine with another network and loss: what is a logprob of each token there is
here the score of a whole conversation, at its last token.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from configs.errors import ConfigError, Problem
from configs.model_code import code_options
from configs.schema import ModelConfig
from trainer.attention import choose_attention
from trainer.engine import PolicyEngine
from trainer.loss import LossInputs, LossOutput
from trainer.metrics import Mean
from trainer.model import DTYPES, FlatModel, Packing, PolicyModel, load_hf_config, prepare
from trainer.zero_engine import Recompute


class ScoreModel(PolicyModel):
    """A sequence classifier over flat token streams; dropout is off in every mode."""

    def __init__(self, network: PreTrainedModel, *, packing: Packing, path: str) -> None:
        if not isinstance(getattr(network, "score", None), nn.Linear):
            raise ConfigError(
                Problem(
                    where="model.path",
                    what=f"{path} makes a classifier whose head is not a linear `score`",
                    fix="Give a decoder such as Qwen, Llama or Mistral.",
                )
            )
        attention = choose_attention(network, on_cuda=torch.cuda.is_available())
        FlatModel.__init__(self, network, packing=packing, attention=attention)
        self.score_row = None

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        temperature: Tensor,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (scores [T], zeros [T]) in fp32: each segment's score at its last token."""
        hidden = self.hidden(token_ids, positions, cu_seqlens)
        last = cu_seqlens[1:] - 1
        head = self.network.get_submodule("score")
        scores: Tensor = head(hidden.index_select(0, last))[:, 0].float()
        nothing = torch.zeros(len(token_ids), dtype=torch.float32, device=scores.device)
        return nothing.index_copy(0, last, scores), nothing


class RewardModelEngine(PolicyEngine):
    """One rank of a reward model under training."""

    def _load(self, recompute: Recompute) -> PolicyModel:
        model = self.cfg.model
        torch.manual_seed(self.cfg.seed)  # the head is new, and the same on every rank
        network = AutoModelForSequenceClassification.from_pretrained(
            model.path,
            config=score_config(model),
            dtype=DTYPES[model.dtype],
            use_safetensors=True,
            **code_options(model),
        )
        prepare(network, recompute)
        return ScoreModel(network, packing=self.cfg.batch.packing, path=model.path)


def score_config(cfg: ModelConfig) -> PretrainedConfig:
    """Return the model's config as that of a classifier of one output that knows its padding."""
    config = load_hf_config(cfg)
    config.num_labels = 1
    if config.pad_token_id is None:
        tokenizer = AutoTokenizer.from_pretrained(cfg.path, **code_options(cfg))
        config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    return config


def bradley_terry(x: LossInputs) -> LossOutput:
    """-log sigmoid(s_chosen - s_rejected) of each pair (Bradley and Terry, 1952; arXiv:1706.03741),
    whose two scores stand side by side, the chosen one first."""
    x = x.filled()
    scores = x.policy_logprobs[x.loss_mask].view(-1, 2)
    margin = scores[:, 0] - scores[:, 1]
    pair = torch.ones_like(margin, dtype=torch.bool)
    metrics = {
        "accuracy": Mean((margin > 0).float(), pair),
        "margin": Mean(margin, pair),
        "score": Mean(scores.mean(1), pair),
    }
    return LossOutput(total=-logsigmoid(margin).sum(), metrics=metrics)
