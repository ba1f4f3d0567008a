import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.model_files import find_model_folder, read_model_shape
from configs.schema import RunConfig
from configs.validate import colocation_root, find_warnings, validate_run

Make = Callable[..., RunConfig]


def model_folder(path: Path) -> Path:
    """Write the files of a tiny model: tied Qwen2, one tensor of real size a module."""
    path.mkdir(parents=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    header = json.dumps(
        {
            "model.embed_tokens.weight": {
                "dtype": "F32",
                "shape": [64, 16],
                "data_offsets": [0, 1],
            },
            "model.norm.weight": {"dtype": "F32", "shape": [16], "data_offsets": [0, 1]},
        }
    ).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a maker of configs: a valid one, with sections replaced."""
    folder = model_folder(tmp_path / "model")

    def make(**sections: object) -> RunConfig:
        source = {
            "name": "sums",
            "data": {"procedural": "reasoning_gym/chain_sum"},
            "rewards": [{"use": "exact", "name": "correct"}],
            "sampling": {"max_tokens": 64},
        }
        base = {
            "name": "t",
            "num_steps": 10,
            "model": {"path": str(folder), "max_model_len": 256},
            "sources": [{**source, **s} for s in sections.pop("sources", [{}])],  # type: ignore
            "batch": {"groups_per_step": 8, **sections.pop("batch", {})},  # type: ignore
        }
        return RunConfig.model_validate({**base, **sections})

    return make


def test_a_sound_recipe_has_no_problem_and_no_warning(make: Make):
    assert validate_run(make()) == []
    assert find_warnings(make()) == []


def on_gpus(**parts: dict[str, object]) -> dict[str, object]:
    return {role: {"actors": {"gpus": 1.0, **actors}} for role, actors in parts.items()}


KL = {"algorithm": {"kl": {"coef": 0.1}}}
HALF = {"gpus": 0.5}

CASES: list[tuple[str, dict[str, object], str]] = [
    (
        "constant tokens that nothing reads",
        {"algorithm": {"constant_tokens": 9}},
        "algorithm.constant_tokens",
    ),
    (
        "a KL target without a KL",
        {"algorithm": {"kl": {"target": 0.1}}},
        "algorithm.kl.target",
    ),
    ("same name", {"sources": [{}, {}]}, "sources"),
    ("no rewards", {"sources": [{"rewards": []}]}, "sources.sums.rewards"),
    (
        "zero weights",
        {"sources": [{"rewards": [{"use": "x", "name": "a", "weight": 0}]}]},
        "sources.sums.rewards",
    ),
    (
        "two parts of one name",
        {"sources": [{"rewards": [{"use": "x", "name": "a"}, {"use": "y", "name": "a"}]}]},
        "sources.sums.rewards",
    ),
    ("no data", {"sources": [{"data": {}}]}, "sources.sums.data"),
    (
        "two data",
        {"sources": [{"data": {"procedural": "a", "jsonl": __file__}}]},
        "sources.sums.data",
    ),
    (
        "no such file",
        {"sources": [{"data": {"jsonl": "/nowhere.jsonl"}}]},
        "sources.sums.data.jsonl",
    ),
    (
        "no room for a prompt",
        {"sources": [{"sampling": {"max_tokens": 256}}]},
        "sources.sums.sampling.max_tokens",
    ),
    (
        "a sample over the budget",
        {"batch": {"max_tokens_per_microbatch": 255}},
        "batch.max_tokens_per_microbatch",
    ),
    ("more mini-batches than groups", {"batch": {"num_minibatches": 9}}, "batch.num_minibatches"),
    (
        "betas",
        {"trainer": {"optimizer": {"betas": (0.9, 1.0)}}},
        "trainer.optimizer.betas",
    ),
    ("1.5 GPUs", {"reward": {"actors": {"gpus": 1.5}}}, "reward.actors.gpus"),
    ("a rank of two GPUs", on_gpus(trainer={"gpus": 2}, rollout={}), "trainer.actors.gpus"),
    (
        "TP without its GPUs",
        {"rollout": {"actors": {"gpus": 1}, "tensor_parallel": 2}, **on_gpus(trainer={})},
        "rollout.actors.gpus",
    ),
    ("GPUs without TP", on_gpus(trainer={}, rollout={"gpus": 2}), "rollout.actors.gpus"),
    (
        "fractions beyond a GPU",
        on_gpus(trainer={"gpus": 0.6}, rollout={"gpus": 0.6, "colocate_with": "trainer"}),
        "trainer.actors.gpus",
    ),
    (
        "a whole GPU and a fraction",
        on_gpus(trainer={}, rollout={"gpus": 0.5, "colocate_with": "trainer"}),
        "trainer.actors.gpus",
    ),
    (
        "with itself",
        {"rollout": {"actors": {"colocate_with": "rollout"}}},
        "rollout.actors.colocate_with",
    ),
    (
        "with one that is not started",
        {"rollout": {"actors": {"colocate_with": "reference"}}},
        "rollout.actors.colocate_with",
    ),
    (
        "in a circle",
        {
            "rollout": {"actors": {"colocate_with": "trainer"}},
            "trainer": {"actors": {"colocate_with": "rollout"}},
        },
        "rollout.actors.colocate_with",
    ),
    (
        "more actors than bundles",
        {"rollout": {"actors": {"count": 2, "colocate_with": "trainer"}}},
        "rollout.actors.colocate_with",
    ),
    (
        "labels at odds",
        {
            "rollout": {"actors": {"labels": {"pool": "a"}, "colocate_with": "trainer"}},
            "trainer": {"actors": {"labels": {"pool": "b"}}},
        },
        "rollout.actors.labels.pool",
    ),
    ("reference without a GPU", {**on_gpus(trainer={}, rollout={}), **KL}, "reference.actors.gpus"),
    (
        "offload of nothing",
        {"trainer": {"zero_stage": 0, "offload": "optimizer"}},
        "trainer.offload",
    ),
    (
        "parameters without stage 3",
        {"trainer": {"zero_stage": 2, "offload": "parameters"}},
        "trainer.offload",
    ),
    ("nccl on CPU", {"weight_sync": {"backend": "nccl"}}, "weight_sync.backend"),
    (
        "nccl on one GPU",
        {
            **on_gpus(trainer=HALF, rollout={**HALF, "colocate_with": "trainer"}),
            "weight_sync": {"backend": "nccl", "transport": "broadcast"},
        },
        "weight_sync.backend",
    ),
    (
        "shared between GPUs",
        {**on_gpus(trainer={}, rollout={}), "weight_sync": {"transport": "shared"}},
        "weight_sync.transport",
    ),
    (
        "shared between whole GPUs of one bundle",
        {
            **on_gpus(trainer={}, rollout={"colocate_with": "trainer"}),
            "weight_sync": {"transport": "shared"},
        },
        "weight_sync.transport",
    ),
    (
        "shared with engines of two GPUs",
        {
            **on_gpus(
                trainer={**HALF, "count": 2},
                rollout={**HALF, "count": 2, "colocate_with": "trainer"},
            ),
            "weight_sync": {"transport": "shared"},
        },
        "weight_sync.transport",
    ),
    (
        "shared between hosts",
        {"ray_address": "auto", "weight_sync": {"transport": "shared"}},
        "weight_sync.transport",
    ),
    (
        "bounds crossed",
        {"weight_sync": {"max_logprob_gap_median": 0.5, "max_logprob_gap_max": 0.1}},
        "weight_sync.max_logprob_gap_max",
    ),
    ("silence", {"health": {"heartbeat_s": 5, "silence_s": 5}}, "health.silence_s"),
    ("too long for the model", {"model": {"max_model_len": 513}}, "model.max_model_len"),
    ("neither folder nor hub name", {"model": {"path": "./nowhere"}}, "model.path"),
]


@pytest.mark.parametrize(("sections", "where"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_problem_is_found_alone(
    make: Make, tmp_path: Path, sections: dict[str, object], where: str
):
    sections = dict(sections)
    if isinstance(sections.get("model"), dict) and "path" not in sections["model"]:  # type: ignore
        sections["model"] = {"path": str(tmp_path / "model"), **sections["model"]}  # type: ignore
    if where == "model.max_model_len":
        sections["batch"] = {"max_tokens_per_microbatch": 1024}
    problems = validate_run(make(**sections))
    assert [p.where for p in problems] == [where], problems
    assert problems[0].what


def test_all_problems_come_at_once(make: Make):
    cfg = make(
        sources=[{}, {}],
        batch={"num_minibatches": 9},
        trainer={"zero_stage": 0, "offload": "optimizer"},
    )
    found = {p.where for p in validate_run(cfg)}
    assert found == {"sources", "batch.num_minibatches", "trainer.offload"}


def test_fractions_that_sum_to_one_gpu_are_sound(make: Make):
    share = {"colocate_with": "trainer"}
    sections = on_gpus(
        trainer={"gpus": 0.3}, rollout={"gpus": 0.6, **share}, reference={"gpus": 0.1, **share}
    )
    sections["rollout"] = {**sections["rollout"], "gpu_memory_utilization": 0.5}  # type: ignore
    cfg = make(**sections, **KL)
    assert validate_run(cfg) == []
    assert find_warnings(cfg) == []
    assert colocation_root(cfg, "reference") == "trainer"


def test_a_chain_of_colocation_has_one_root(make: Make):
    cfg = make(
        rollout={"actors": {"colocate_with": "trainer"}},
        reference={"actors": {"colocate_with": "rollout"}},
        **KL,
    )
    assert validate_run(cfg) == []
    assert colocation_root(cfg, "reference") == "trainer"


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (["tokenizer.json"], "tokenizer"),
        (["tokenizer_config.json"], "chat template"),
        (["config.json"], "config.json"),
        (["model.safetensors"], "weights"),
    ],
)
def test_a_model_folder_that_lacks_something(
    make: Make, tmp_path: Path, missing: list[str], says: str
):
    cfg = make()
    for name in missing:
        (tmp_path / "model" / name).unlink()
    problems = validate_run(cfg)
    assert [p.where for p in problems] == ["model.path"]
    assert f"has no {says}" in problems[0].what


@pytest.mark.parametrize(
    ("sections", "where", "says"),
    [
        ({"sources": [{"group_size": 1}]}, "sources.sums.group_size", "trains nothing"),
        ({"sources": [{"loss_weight": 0}]}, "sources.sums.loss_weight", "trains nothing"),
        (
            {"sources": [{"weight": 19}, {"name": "rare"}], "batch": {"groups_per_step": 4}},
            "sources.rare.weight",
            "0.2 groups a step: about 4 of 5 steps",
        ),
        ({"eval": {"every": 11}}, "eval.every", "never comes due"),
        ({"checkpoint": {"every": 11}}, "checkpoint.every", "never comes due"),
        ({"num_steps": 200}, "checkpoint.every", "loses all"),
        (
            {"trainer": {"optimizer": {"warmup_steps": 10}}},
            "trainer.optimizer.warmup_steps",
            "whole run",
        ),
        ({"reference": {"actors": {"count": 2}}}, "reference", "no reference is started"),
        (on_gpus(trainer={}), "rollout.actors.gpus", "Give both"),
        ({"model": {"path": "org/name"}}, "model.path", "hub name"),
        ({"algorithm": {"loss": {"use": "gspo"}}}, "algorithm.aggregation", "sequence_mean"),
        (
            {"algorithm": {"loss": {"use": "trust_region"}, "correction": {"high": 3}}},
            "algorithm.correction",
            "does nothing",
        ),
        ({"algorithm": {"correction": {"low": 0.1}}}, "algorithm.correction.low", "`mask` alone"),
        (
            {"algorithm": {"kl": {"coef": 0.1, "estimator": "k1"}}},
            "algorithm.kl.estimator",
            "0 on average",
        ),
        (
            {
                **on_gpus(trainer=HALF, rollout={**HALF, "colocate_with": "trainer"}),
                "batch": {"max_staleness": 1},
            },
            "batch.max_staleness",
            "share a GPU",
        ),
    ],
)
def test_warnings(make: Make, sections: dict[str, object], where: str, says: str):
    found = {w.where: f"{w.what} {w.fix}" for w in find_warnings(make(**sections))}
    assert says in found[where]


def test_an_engine_may_not_take_more_memory_than_its_share(make: Make):
    cfg = make(**on_gpus(trainer=HALF, rollout={**HALF, "colocate_with": "trainer"}))
    assert "rollout.gpu_memory_utilization" in {w.where for w in find_warnings(cfg)}


def test_a_hub_name_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert find_model_folder("org/name") is None
    snapshot = model_folder(tmp_path / "models--org--name" / "snapshots" / "abc")
    assert find_model_folder("org/name") == snapshot
    shape = read_model_shape(snapshot)
    assert shape is not None
    assert (shape.params, shape.largest_layer_params) == (64 * 16 + 16, 64 * 16)
    assert shape.counted_from == "safetensors headers"


def test_a_git_lfs_pointer_is_not_read_as_weights(tmp_path: Path):
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    shape = read_model_shape(folder)
    assert shape is not None and shape.counted_from == "config.json"
