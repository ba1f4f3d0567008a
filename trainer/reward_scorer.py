"""A Hugging Face sequence classifier as a scorer of conversations."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from configs.errors import ConfigError, Problem
from configs.model_code import code_options
from configs.schema import ModelConfig
from rollouts.types import Message
from trainer.model import DTYPES


class RewardScorer:
    """The model on one device, in evaluation mode.

    Raises:
        ConfigError: it cannot be loaded, has no chat template, or no output number `label`.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        label: int = 0,
        where: str = "model.path",
        device: torch.device | None = None,
    ):
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._longest, self._label = cfg.max_model_len, label
        try:
            options = code_options(cfg, where.removesuffix(".path"))
            tokenizer = AutoTokenizer.from_pretrained(cfg.path, **options)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                cfg.path,
                dtype=DTYPES[cfg.dtype],
                use_safetensors=True,
                **options,
                output_loading_info=True,
            )
        except (OSError, ValueError) as error:
            raise _unusable(where, f"{cfg.path} cannot be loaded: {error}") from error
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise _unusable(where, f"{cfg.path} has no trained {missing}: its scores mean nothing")
        if tokenizer.chat_template is None:
            raise _unusable(where, f"the tokenizer of {cfg.path} has no chat template")
        if label >= model.config.num_labels:
            what = f"{cfg.path} has {model.config.num_labels} outputs, so none is number {label}"
            raise _unusable(where, what)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
        self._pad = int(model.config.pad_token_id or 0)
        self._tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False).to(self.device)

    def encode(self, conversation: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation as the model's own template writes it.

        Raises:
            ValueError: it is longer than `max_model_len`.
        """
        plain = [{"role": m.role, "content": m.content} for m in conversation]
        ids = self._tokenizer.apply_chat_template(plain, tokenize=True, return_dict=False)
        if len(ids) > self._longest:
            raise ValueError(
                f"a conversation of {len(ids)} tokens is longer than model.max_model_len "
                f"{self._longest}"
            )
        return [int(i) for i in ids]

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Score conversations in one padded batch."""
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self._pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            mask[at, : len(row)] = 1
        logits: Tensor = self._model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).logits
        return [float(x) for x in logits[:, self._label].float().cpu()]


def _unusable(where: str, what: str) -> ConfigError:
    fix = "Give a folder or hub name of a Hugging Face sequence classifier with its tokenizer."
    return ConfigError(Problem(where=where, what=what, fix=fix))
