"""The reward model: a tiny random classifier, scored in batches as one by one."""

import asyncio
import json
import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification
from typer.testing import CliRunner

from actors.reward_model import Copy, LocalRewardModel, RewardModelLink, take_batch
from configs.engines import ModelConfig
from configs.errors import ConfigError
from configs.judges import RewardModelConfig
from orchestrator.cli import app
from rewards.score import FailureKind, GradeFailed
from rollouts.types import Message
from trainer.reward_scorer import RewardScorer
from trainer.tiny_model import build_tokenizer


def small(**more: Any) -> Qwen2Config:
    tokenizer = build_tokenizer()
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        **more,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a classifier of two outputs, its weights random."""
    path = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(small(num_labels=2))
    torch.nn.init.normal_(model.score.weight, std=1.0)
    model.save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


def talk(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content="q"), Message(role="assistant", content=text))


def config(path: Path, **more: Any) -> RewardModelConfig:
    model = ModelConfig(path=str(path), dtype="float32", max_model_len=64)
    return RewardModelConfig(model=model, max_tokens_per_batch=128, **more)


def test_a_batch_scores_as_its_rows_do(folder: Path):
    texts = ["", "a", "abc " * 5, "zzz", "the quick brown fox"]
    for label in (0, 1):
        scorer = RewardScorer(config(folder).model, label=label)
        rows = [scorer.encode(talk(t)) for t in texts]
        alone = [scorer.score([row])[0] for row in rows]
        assert scorer.score(rows) == pytest.approx(alone, abs=1e-5)
        assert len(set(alone)) == len(alone)


def test_what_is_no_reward_model_is_a_config_error(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="none is number 2"):
        RewardScorer(config(folder).model, label=2)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        RewardScorer(config(tmp_path).model)
    Qwen2ForCausalLM(small()).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="scores mean nothing"):
        RewardScorer(config(tmp_path).model)


@pytest.mark.parametrize("seed", range(20))
def test_batches_keep_the_order_and_the_bound(seed: int):
    rng = random.Random(seed)
    lengths = [rng.randint(1, 50) for _ in range(40)]
    waiting: deque[Any] = deque(([0] * n, None) for n in lengths)
    taken: list[int] = []
    while waiting:
        batch = [len(row) for row, _ in take_batch(waiting, 100)]
        assert len(batch) == 1 or max(batch) * len(batch) <= 100
        taken += batch
    assert taken == lengths


def started(folder: Path) -> Copy:
    copy = Copy("rm", config(folder))
    copy.load()
    return copy


def handle(call: Any) -> Any:
    """Return something called as Ray calls an actor."""
    return SimpleNamespace(score=SimpleNamespace(remote=call))


def test_many_at_once_share_passes_and_get_their_own_scores(folder: Path):
    actor = started(folder)
    texts = [f"answer {i} " + "x" * (i % 7) for i in range(30)]
    alone = [actor._scorer.score([actor._scorer.encode(talk(t))])[0] for t in texts]  # type: ignore[union-attr]
    passes: list[int] = []
    whole = actor._scorer.score  # type: ignore[union-attr]

    def counted(rows: Sequence[Sequence[int]]) -> list[float]:
        passes.append(len(rows))
        return whole(rows)

    actor._scorer.score = counted  # type: ignore[union-attr, method-assign]

    async def scenario():
        return await asyncio.gather(*(actor.score(talk(t)) for t in texts))

    assert asyncio.run(scenario()) == pytest.approx(alone, abs=1e-5)
    assert sum(passes) == 30 and len(passes) < 30


def test_the_link_turns_every_failure_into_a_grade_failed(folder: Path):
    actor = started(folder)

    async def never(_: object) -> float:
        await asyncio.sleep(60)
        return 0.0

    async def scenario(call: Any, text: str, timeout_s: float) -> float:
        link = RewardModelLink("rm", config(folder, timeout_s=timeout_s), [handle(call)])
        return await link.score(talk(text))

    assert isinstance(asyncio.run(scenario(actor.score, "fine", 60)), float)
    for call, text, timeout_s, why in (
        (actor.score, "x" * 100, 60, "longer than model.max_model_len"),
        (never, "fine", 0.2, "no score within 0.2 s"),
    ):
        with pytest.raises(GradeFailed, match=why) as failed:
            asyncio.run(scenario(call, text, timeout_s))
        assert failed.value.kind == FailureKind.JUDGE_SERVER


@pytest.mark.parametrize("failure", [RuntimeError, ValueError])
def test_a_pass_that_fails_fails_its_own_rows_alone(folder: Path, failure: type[Exception]):
    actor = started(folder)
    whole = actor._scorer.score  # type: ignore[union-attr]
    calls = iter([True, False])

    def sometimes(rows: Sequence[Sequence[int]]) -> list[float]:
        if next(calls):
            raise failure("out of memory")
        return whole(rows)

    actor._scorer.score = sometimes  # type: ignore[union-attr, method-assign]

    async def scenario():
        with pytest.raises(RuntimeError, match=r"reward_models.rm: out of memory"):
            await actor.score(talk("a"))
        return await actor.score(talk("a"))

    assert isinstance(asyncio.run(scenario()), float)


def test_the_command_line_scores_without_ray_what_the_file_declares(folder: Path, tmp_path: Path):
    file = tmp_path / "judges.yaml"
    model = {"path": str(folder), "dtype": "float32", "max_model_len": 64}
    file.write_text(json.dumps({"reward_models": {"rm": {"model": model}}}))
    grader = '{"type": "reward_model", "model": "rm", "scale": 2}'
    item = '{"prompt": "q", "answer": "x"}'
    asked = ["grade", grader, "--item", item, "--judges", str(file), "--json", "--sample"]
    done = CliRunner().invoke(app, [*asked, "fine"])
    assert done.exit_code == 0, done.output
    scorer = RewardScorer(config(folder).model)
    raw = scorer.score([scorer.encode(talk("fine"))])[0]
    assert json.loads(done.stdout)["reward"] == pytest.approx(2 * raw, abs=1e-5)

    done = CliRunner().invoke(app, [*asked, "x" * 100])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["metadata"]["errors"]["model_grader_server_error"] is True


def test_a_model_that_hangs_or_runs_out_of_memory_gives_no_score(folder: Path):
    async def scenario(score: Any, timeout_s: float) -> float:
        local = LocalRewardModel("rm", config(folder, timeout_s=timeout_s))
        local._copy.score = score  # type: ignore[method-assign]
        return await local.score(talk("a"))

    async def full(_: object) -> float:
        raise RuntimeError("out of memory")

    async def never(_: object) -> float:
        await asyncio.sleep(60)
        return 0.0

    for score, timeout_s, why in (
        (full, 60, "out of memory"),
        (never, 0.2, "no score within 0.2 s"),
    ):
        with pytest.raises(GradeFailed, match=why):
            asyncio.run(scenario(score, timeout_s))
