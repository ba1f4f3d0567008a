import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from configs.load import load_any
from configs.model_files import ModelShape, read_model_shape
from configs.schema import RunConfig
from configs.sft import training_run
from orchestrator.planning.memory import (
    GIB,
    activation_bytes,
    kv_bytes_per_token,
    logit_chunk_bytes,
    zero_model_states,
)
from orchestrator.planning.plan import make_plan, plan_bundles

ROOT = Path(__file__).parents[3]
QWEN_HALF_B = {
    "architectures": ["Qwen2ForCausalLM"],
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


@pytest.fixture
def half_b(tmp_path: Path) -> Path:
    """A folder with the configuration of Qwen2.5-0.5B, and no weights."""
    folder = tmp_path / "half-b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN_HALF_B))
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (folder / name).write_text("")
    return folder


def config(path: str = "org/model", **changes: object) -> RunConfig:
    source = {
        "name": "sums",
        "data": {"procedural": "reasoning_gym/chain_sum", "size": 100},
        "rewards": [{"use": "exact", "name": "correct"}],
        "sampling": {"max_tokens": 100},
    }
    base = {
        "name": "small",
        "num_steps": 10,
        "model": {"path": path, "max_model_len": 256},
        "sources": [
            {**source, "weight": 3, "group_size": 4},
            {**source, "name": "words", "group_size": 16},
        ],
        "batch": {"groups_per_step": 6, "max_tokens_per_microbatch": 1024, "num_minibatches": 2},
    }
    return RunConfig.model_validate({**base, **changes})


def members(cfg: RunConfig) -> list[list[str]]:
    return [[f"{m.role}{m.index}" for m in b.members] for b in plan_bundles(cfg)]


def test_every_actor_has_a_bundle_of_its_own():
    cfg = config(rollout={"actors": {"count": 2, "cpus": 1.5, "gpus": 1, "labels": {"a": "b"}}})
    assert members(cfg) == [["trainer0"], ["rollout0"], ["rollout1"], ["reward0"]]
    bundle = plan_bundles(cfg)[1]
    assert (bundle.index, bundle.cpus, bundle.gpus, bundle.labels) == (1, 1.5, 1, {"a": "b"})


def test_some_groups_alone_have_bundles_without_their_hosts():
    cfg = config(
        trainer={"actors": {"count": 2, "gpus": 0.5}},
        rollout={"actors": {"count": 2, "gpus": 0.5, "colocate_with": "trainer"}},
        reward={"actors": {"count": 1, "colocate_with": "rollout"}},
    )
    some = plan_bundles(cfg, {"rollout", "reward"})
    assert [[f"{m.role}{m.index}" for m in b.members] for b in some] == [
        ["rollout0", "reward0"],
        ["rollout1"],
    ]
    assert [b.gpus for b in some] == [0.5, 0.5]


def test_the_reference_is_there_only_for_a_kl_term():
    assert members(config(algorithm={"kl": {"coef": 0.1}})) == [
        ["trainer0"],
        ["rollout0"],
        ["reference0"],
        ["reward0"],
    ]


def test_colocated_actors_share_a_bundle_led_by_whose_it_is():
    cfg = config(
        algorithm={"kl": {"coef": 0.1}},
        trainer={"actors": {"count": 2, "cpus": 0.1, "gpus": 0.5}},
        rollout={"actors": {"count": 2, "cpus": 0.2, "gpus": 0.3, "colocate_with": "trainer"}},
        reference={"actors": {"count": 1, "gpus": 0.2, "colocate_with": "rollout"}},
    )
    assert members(cfg) == [
        ["trainer0", "rollout0", "reference0"],
        ["trainer1", "rollout1"],
        ["reward0"],
    ]
    first, second, _ = plan_bundles(cfg)
    assert (first.cpus, first.gpus) == (0.8, 1.0)
    assert (second.cpus, second.gpus) == (0.3, 0.8)


def test_a_broken_recipe_still_has_a_plan():
    cfg = config(
        rollout={"actors": {"colocate_with": "trainer"}},
        trainer={"actors": {"colocate_with": "rollout"}},
    )
    plan = make_plan(cfg)
    assert {m.role for b in plan.bundles for m in b.members} == {"trainer", "rollout", "reward"}
    assert any("circle" in p.what for p in plan.problems)


def test_batch_arithmetic_by_hand():
    plan = make_plan(config(trainer={"actors": {"count": 2}}))
    sums, words = plan.sources
    # 6 groups, 3:1 -> 4.5 and 1.5, in turns of 4 and 5, 2 and 1.
    assert (sums.groups_per_step, sums.groups_least, sums.groups_most) == (4.5, 4, 5)
    assert (words.groups_per_step, words.groups_least, words.groups_most) == (1.5, 1, 2)
    assert (sums.groups_in_run, words.groups_in_run) == (45, 15)
    assert (sums.epochs, words.epochs) == (0.45, 0.15)
    batch = plan.batch
    assert batch.samples_per_step == 4 * 4 + 2 * 16  # 48 > 5 * 4 + 1 * 16
    assert batch.completion_tokens_at_most == 4800
    assert batch.tokens_at_most == 48 * 256
    # 24 samples a mini-batch, 12 a rank, 4 of full length in a micro-batch: 3, times 2.
    assert batch.micro_batches_at_most == 6
    assert (batch.groups_in_flight, batch.sequences_in_flight) == (6, 48)


def test_staleness_multiplies_what_is_in_flight():
    batch = {"groups_per_step": 6, "max_tokens_per_microbatch": 1024, "max_staleness": 2}
    plan = make_plan(config(batch=batch))
    assert (plan.batch.groups_in_flight, plan.batch.sequences_in_flight) == (18, 144)


def test_totals():
    cfg = config(
        trainer={"actors": {"count": 3, "cpus": 0.1, "gpus": 1}},
        rollout={"actors": {"count": 2, "cpus": 1, "gpus": 2}, "tensor_parallel": 2},
    )
    plan = make_plan(cfg)
    assert asdict(plan.totals) == {"actors": 6, "cpus": 2.8, "gpus": 7}
    assert {g.role: g.ranks for g in plan.groups} == {"trainer": 3, "rollout": 4, "reward": 1}


SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    layers=3,
    hidden=10,
    intermediate=40,
    heads=2,
    kv_heads=1,
    head_dim=5,
    vocab=100,
    max_positions=None,
    tied=False,
    params=1000,
    largest_layer_params=100,
    counted_from="test",
)


def test_kv_activations_and_logits_by_hand():
    assert kv_bytes_per_token(SHAPE, 2) == 2 * 3 * 1 * 5 * 2
    layer = 8 * 10 + 2 * 5 + 4 * 40
    whole = activation_bytes(SHAPE, tokens=7, bytes_per_number=2, checkpointing=False)
    assert whole == 7 * 3 * layer * 2
    recomputed = activation_bytes(SHAPE, tokens=7, bytes_per_number=2, checkpointing=True)
    assert recomputed == 7 * (3 * 10 + layer) * 2
    assert logit_chunk_bytes(SHAPE, chunk=8) == 2 * 8 * 100 * 4


ZERO = """
import json, sys
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as two
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as three
found = []
for params, largest, world in json.loads(sys.argv[1]):
    for offload in ("none", "optimizer"):
        host, gpu = two(params, world, 1, cpu_offload=offload != "none")
        found.append([2, params, largest, world, offload, gpu, host])
    for offload in ("none", "optimizer", "parameters"):
        host, gpu, _ = three(params, largest, world, 1, cpu_offload=offload != "none",
                             cpu_offload_params=offload == "parameters", zero_init=False)
        found.append([3, params, largest, world, offload, gpu, host])
print(json.dumps(found))
"""


def test_model_states_equal_deepspeed_s_own_estimates():
    sizes = [(7_615_616_512, 544_997_376, 4), (494_032_768, 136_134_656, 1), (1000, 10, 8)]
    done = subprocess.run(
        [sys.executable, "-c", ZERO, json.dumps(sizes)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cases = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(cases) == 15
    for stage, params, largest, world, offload, gpu, host in cases:
        ours = zero_model_states(
            stage=stage,
            params=params,
            largest_layer_params=largest,
            world=world,
            offload=offload,
        )
        assert ours.device_bytes == gpu, (stage, world, offload)
        assert abs(ours.host_bytes * world - host) <= world, (stage, world, offload)


def test_stages_0_and_1_and_fp32_by_hand():
    def device(stage: int, **kwargs: int) -> int:
        return zero_model_states(
            stage=stage, params=100, largest_layer_params=10, world=4, **kwargs
        ).device_bytes

    assert device(0) == 100 * (2 + 2 + 4 + 4 + 8)
    assert device(1) == 100 * (2 + 2 + 4) + 100 * (4 + 8) // 4
    assert device(1, bytes_per_param=4) == 100 * (4 + 4) + 100 * (4 + 4 + 8) // 4
    assert device(2, bytes_per_param=4) == 100 * 4 + 100 * (4 + 4 + 4 + 8) // 4


def test_parameters_from_the_config_are_those_of_the_published_model(half_b: Path):
    shape = read_model_shape(half_b)
    assert shape is not None
    assert shape.params == 494_032_768  # on the model card of Qwen2.5-0.5B
    assert shape.largest_layer_params == 151936 * 896
    assert shape.counted_from == "config.json"


def test_memory_of_a_known_model(half_b: Path):
    cfg = config(
        str(half_b),
        trainer={"actors": {"gpus": 1}},
        rollout={"actors": {"gpus": 1}, "gpu_memory_utilization": 0.75},
    )
    plan = make_plan(cfg, gpu_gib=24)
    by_role = {m.role: m for m in plan.memory}
    states = {p.name: p.gib for p in by_role["trainer"].parts}["model states"]
    assert states == pytest.approx(20 * 494_032_768 / GIB, abs=1e-3)
    kv = by_role["rollout"].kv
    assert kv is not None and kv.tokens is not None
    assert kv.bytes_per_token == 2 * 24 * 2 * 64 * 2
    room = 18 * GIB - 2 * 494_032_768
    assert kv.tokens == room // (kv.bytes_per_token * 16) * 16
    beyond = {p.name: p.gib for p in by_role["rollout"].parts if p.name != "weights"}
    assert beyond == {"KV cache": pytest.approx(18 - 0.92, abs=0.01)} | {
        "sync buckets": 0.5,  # beside vLLM's own share, as is CUDA's context
        "CUDA context": 0.5,
    }
    assert plan.fullest_gpu_gib == pytest.approx(19.0, abs=0.01)
    assert by_role["trainer"].host_gib is not None
    assert plan.problems == ()


def test_what_does_not_fit_is_a_problem(half_b: Path):
    cfg = config(str(half_b), trainer={"actors": {"gpus": 1}}, rollout={"actors": {"gpus": 1}})
    assert make_plan(cfg, gpu_gib=80).problems == ()
    assert [p.where for p in make_plan(cfg, gpu_gib=8).problems] == ["memory"]


def test_a_cache_too_small_for_one_sequence_is_a_problem(half_b: Path):
    def problems(length: int) -> list[str]:
        model = {"path": str(half_b), "max_model_len": length, "dtype": "float32"}
        batch = {"groups_per_step": 6, "max_tokens_per_microbatch": length}
        return [p.where for p in make_plan(config(model=model, batch=batch)).problems]

    # 1 GiB over 2 * 24 layers * 2 heads * 64 * 4 bytes, in blocks of 128 tokens
    fit = GIB // (24576 * 128) * 128
    assert problems(min(fit, 32768)) == []
    config_file = half_b / "config.json"
    deeper = {**QWEN_HALF_B, "num_hidden_layers": 48}
    config_file.write_text(json.dumps(deeper))
    assert problems(32768) == ["rollout.kv_cache_gib"]


def test_an_unknown_model_is_said_to_be_unknown():
    plan = make_plan(config("org/model-7B"))
    assert plan.model is None and plan.fullest_gpu_gib is None
    assert all(m.total_gib is None and "unknown" in m.note for m in plan.memory)
    assert any("hub name" in w.what for w in plan.warnings)


def test_the_plan_is_json_and_whole(half_b: Path):
    plan = make_plan(config(str(half_b)))
    back = json.loads(json.dumps(plan.to_json()))
    assert back["batch"]["groups_per_step"] == 6
    assert back["bundles"][0]["members"][0]["role"] == "trainer"
    assert back["memory"][0]["total_gib"] > 0


def test_problems_of_data_and_rewards_are_in_the_plan():
    source = config().sources[0].model_dump()
    source["data"]["procedural"] = "reasoning_gym/countdown"
    source["rewards"] = [{"use": "no_such", "name": "x"}]
    found = " ".join(p.where for p in make_plan(config(sources=[source])).problems)
    assert "sources.sums.data" in found and "sources.sums.rewards" in found


def test_items_and_epochs_of_a_file_are_known_where_it_is_small(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "q{i}", "answer": ""}}\n' for i in range(30)))
    source = config().sources[0].model_dump()
    source["data"] = {"jsonl": str(path), "held_out": 8}
    source["rewards"] = [{"use": "exact", "name": "x"}]
    plan = make_plan(config(sources=[source]))
    (data,), (planned,) = plan.data, plan.sources
    assert data.items == 22
    assert planned.epochs == round(planned.groups_in_run / 22, 3)


def test_one_problem_is_not_told_twice():
    source = config().sources[0].model_dump()
    source["data"] = {"jsonl": "/nowhere/rows.jsonl"}
    wheres = [p.where for p in make_plan(config(sources=[source])).problems]
    assert len(wheres) == len(set(wheres))


@pytest.mark.parametrize(
    "recipe", sorted(ROOT.glob("configs/recipes/*.yaml")), ids=lambda p: p.stem
)
def test_bundles_of_every_recipe_hold_every_actor_once(recipe: Path):
    cfg = load_any(recipe)
    cfg = cfg if isinstance(cfg, RunConfig) else training_run(cfg, num_steps=1)
    seats = [(m.role, m.index) for b in plan_bundles(cfg) for m in b.members]
    assert len(seats) == len(set(seats))
    assert sorted(seats) == sorted(
        (g.role, i) for g in make_plan(cfg).groups for i in range(g.actors)
    )
