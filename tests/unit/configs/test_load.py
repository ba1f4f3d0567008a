import json
import re
from pathlib import Path

import pytest

from configs.base import PATTERN_WORDS
from configs.errors import ConfigError
from configs.infra import InfraConfig
from configs.judges import JudgesFile
from configs.load import load_infra, load_recipe, parse_grader, save_config
from configs.schema import RunConfig
from configs.yaml_text import read_document, write_document

RECIPE = """\
name: small
num_steps: 5
model:
  path: some-org/some-model
sources:
  - name: sums
    data: {procedural: reasoning_gym/chain_sum}
    rewards:
      - {use: exact, name: correct}
  - name: v1.5
    data: {procedural: reasoning_gym/lcm}
    rewards:
      - {use: exact, name: correct}
batch:
  groups_per_step: 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def problems_of(path: Path, *overrides: str) -> dict[str, str]:
    """Load a recipe that must be refused; return its problems as {where: rest}."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return {p.where: f"{p.what} {p.fix}" for p in caught.value.problems}


def test_loads_with_defaults(recipe: Path):
    cfg = load_recipe(recipe)
    assert cfg.num_steps == 5
    assert cfg.trainer.zero_stage == 2
    assert [s.name for s in cfg.sources] == ["sums", "v1.5"]


def test_overrides_reach_list_items_by_name_by_dotted_name_and_by_index(recipe: Path):
    cfg = load_recipe(
        recipe,
        [
            "sources.sums.weight=2",
            "sources.v1.5.weight=3.5",
            "sources.0.group_size=16",
            "sources.sums.rewards.correct.weight=0.5",
            "trainer.optimizer.lr=1e-5",
            "logging.wandb=off",
        ],
    )
    assert [s.weight for s in cfg.sources] == [2.0, 3.5]
    assert cfg.sources[0].group_size == 16
    assert cfg.sources[0].rewards[0].weight == 0.5
    assert cfg.trainer.optimizer.lr == 1e-5
    assert cfg.logging.wandb == "off"


def test_a_value_may_be_yaml(recipe: Path):
    cfg = load_recipe(recipe, ["trainer.actors={count: 2, cpus: 1}", "rollout.actors.labels={}"])
    assert cfg.trainer.actors.count == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E5", 1e5),
        (".5", 0.5),
        ("off", "off"),
        ("no", "no"),
        ("true", True),
        ("12", 12),
        ("0x10", 16),
        ("1_000", 1000),
        ("2026-01-01", "2026-01-01"),
        ("1:30", "1:30"),
        ("''", ""),
        ("", None),
        ("012", "012"),
        ("1.5.2", "1.5.2"),
    ],
)
def test_scalars_are_what_people_mean(text: str, value: object):
    found = read_document(text, "value").data
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value",
    ["off", "no", "1e-6", "12", "true", "null", "~", "", "a: b", "ü\n", "0x1F", "2026-01-01"],
)
def test_written_text_reads_back_as_text(value: str):
    document = read_document(write_document({"key": value, "n": 1e-6}), "x.yaml")
    assert document.data == {"key": value, "n": 1e-6}


def test_save_and_load_are_inverse(recipe: Path, tmp_path: Path):
    cfg = load_recipe(recipe, ["trainer.optimizer.lr=1e-6", "sources.sums.instruction=off"])
    save_config(cfg, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == cfg
    assert list(tmp_path.glob(".*")) == []


def test_all_problems_come_at_once_with_lines(recipe: Path):
    recipe.write_text(
        RECIPE.replace("num_steps: 5", 'num_steps: "5"')
        .replace("groups_per_step: 4", "groups_per_stp: 4")
        .replace("{use: exact, name: correct}", "{use: exact, name: correct, wieght: 1}", 1)
        .replace("path: some-org/some-model", "path: x\n  dtype: fp16")
        + "trainer: {zero_stage: 5, optimizer: {lr: fast}}\n"
    )
    found = problems_of(recipe)
    assert set(found) == {
        "num_steps (small.yaml:2)",
        "model.dtype (small.yaml:5)",
        "sources.sums.rewards.correct.wieght (small.yaml:10)",
        "batch.groups_per_step (small.yaml:15)",
        "batch.groups_per_stp (small.yaml:16)",
        "trainer.zero_stage (small.yaml:17)",
        "trainer.optimizer.lr (small.yaml:17)",
    }
    assert "must be a whole number, is text '5'" in found["num_steps (small.yaml:2)"]
    assert "`float32` or `bfloat16`" in found["model.dtype (small.yaml:5)"]
    assert "must be a number, is text 'fast'" in found["trainer.optimizer.lr (small.yaml:17)"]
    everything = " ".join(found.values()).lower()
    for jargon in ("input should", "extra inputs", "pydantic", "[type="):
        assert jargon not in everything


def test_a_mistyped_key_gets_the_nearest_one(recipe: Path):
    found = problems_of(recipe, "batch.groups_per_stp=4")
    assert (
        "Did you mean `groups_per_step`?"
        in found["batch.groups_per_stp (--set batch.groups_per_stp=4)"]
    )


def test_a_key_of_another_section_is_pointed_to(recipe: Path):
    found = problems_of(recipe, "trainer.warmup_steps=4")
    assert "`trainer.optimizer.warmup_steps`" in next(iter(found.values()))


def test_a_plug_given_as_text_is_told_its_form(recipe: Path):
    found = problems_of(recipe, "sources.sums.advantage=grpo")
    assert "`advantage: {use: grpo}`" in next(iter(found.values()))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("nothing", "no `=`"),
        ("=3", "names no field"),
        ("sources.nope.weight=1", "no item `nope`; they are sums, v1.5"),
        ("sources.7.weight=1", "no item `7`"),
        ("num_steps.x=1", "has no keys below"),
        ("num_steps=[1", "not YAML"),
        ("num_steps=", "is empty"),
        ("num_steps=true", "is true"),
        ("num_steps=5.0", "must be a whole number"),
        ("name=a b", "a name has letters"),
        ("sources=[]", "at least 1 item"),
        ("trainer.optimizer.betas=[0.9]", "missing"),
        ("checkpoint.keep=1", "at least 2"),
    ],
)
def test_bad_overrides(recipe: Path, override: str, says: str):
    found = problems_of(recipe, override)
    assert any(override in where and says in rest for where, rest in found.items()), found


def test_a_wrong_item_does_not_make_the_list_too_short(recipe: Path):
    assert list(problems_of(recipe, "sources.sums.weight=-1")) == [
        "sources.sums.weight (--set sources.sums.weight=-1)"
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no keys"),
        ("- 1\n", "no keys"),
        ("a: [1\nb: 2\n", "not YAML"),
        ("a:\n\tb: 1\n", "not YAML"),
        ("a: &x [*x]\n", "contains itself"),
        ("a: !!python/object/apply:os.system [echo]\n", "unknown key"),
        ("a: !nope 3\n", "not YAML"),
        ("seed: 1\nseed: 2\n", "twice"),
        ("trainer: {<<: {zero_stage: 1}}\n", "merge keys"),
        ("eval: {pass_threshold: .nan}\n", "finite"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, says: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert any(says in rest for rest in problems_of(path).values()), problems_of(path)


def test_a_missing_file_names_its_neighbours(recipe: Path):
    found = problems_of(recipe.with_name("smal.yaml"))
    assert "small.yaml" in next(iter(found.values()))


def test_a_folder_or_a_binary_is_no_recipe(tmp_path: Path):
    assert "cannot be read" in next(iter(problems_of(tmp_path).values()))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in next(iter(problems_of(tmp_path / "b.yaml").values()))


def test_paths_resolve_here_first_and_then_beside_the_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, beside = tmp_path / "here", recipe.parent
    here.mkdir()
    monkeypatch.chdir(here)
    (beside / "model").mkdir()
    (beside / "rows.jsonl").write_text("")
    overrides = [
        "model.path=model",
        "sources.sums.data={jsonl: rows.jsonl}",
        "reference.path=org/hub-name",
    ]
    cfg = load_recipe(recipe, overrides)
    assert cfg.model.path == str(beside / "model")
    assert cfg.sources[0].data.jsonl == (str(beside / "rows.jsonl"),)
    assert cfg.reference.path == "org/hub-name"
    (here / "model").mkdir()
    assert load_recipe(recipe, overrides).model.path == str(here / "model")


def test_anchors_are_kept(recipe: Path):
    text = RECIPE.replace("rewards:\n      - {use: exact, name: correct}\n  - name: v1.5", "X", 1)
    text = text.replace("X", "rewards: &r\n      - {use: exact, name: correct}\n  - name: v1.5", 1)
    text = text.replace("rewards:\n      - {use: exact, name: correct}\n", "rewards: *r\n")
    recipe.write_text(text)
    cfg = load_recipe(recipe)
    assert isinstance(cfg, RunConfig)
    assert cfg.sources[0].rewards == cfg.sources[1].rewards


def test_an_override_of_an_unknown_section_is_told_where_it_was_given(recipe: Path):
    (where,) = problems_of(recipe, "sums.weight=2")
    assert where == "sums (--set sums.weight=2)"


@pytest.mark.parametrize(
    ("override", "what"),
    [("a..b=3", "names no field"), ("..=3", "names no field")],
)
def test_an_override_without_a_field_says_so(recipe: Path, override: str, what: str):
    found = problems_of(recipe, override)
    assert what in found[f"--set {override}"]


def test_an_override_may_not_contain_itself_nor_be_infinite(recipe: Path):
    assert "not YAML" in problems_of(recipe, "num_steps=&a [*a]")["--set num_steps=&a [*a]"]
    assert "finite" in problems_of(recipe, "num_steps=.nan")["--set num_steps=.nan"]


def test_a_missing_grader_file_names_the_reward(recipe: Path):
    (where,) = problems_of(recipe, "sources.sums.rewards.correct={name: a, grader: nope.yaml}")
    assert where == "sources.sums.rewards.a.grader: nope.yaml"


def test_a_text_of_the_wrong_form_is_told_in_the_words_of_its_field(tmp_path: Path):
    text = (Path(__file__).parents[3] / "k8s" / "infra" / "cpu.yaml").read_text()
    path = tmp_path / "infra.yaml"
    path.write_text(re.sub(r"memory: \w+", "memory: 10GB", text) + "\nenv: {my-var: x}\n")
    with pytest.raises(ConfigError) as caught:
        load_infra(path)
    found = {p.where.split(" ")[0]: p.what for p in caught.value.problems}
    assert "10GB" in found["head.memory"] and "Gi" in found["head.memory"]
    assert "variable" in found["env.my-var"]


def test_every_pattern_of_the_sections_has_words():
    roots = (RunConfig, InfraConfig, JudgesFile)
    schemas = [json.dumps(root.model_json_schema()) for root in roots]
    patterns = {json.loads(p) for s in schemas for p in re.findall(r'"pattern": ("\^[^"]*")', s)}
    assert patterns and patterns <= set(PATTERN_WORDS)


def test_an_infra_file_gets_hints_of_its_own_alone(tmp_path: Path):
    path = tmp_path / "infra.yaml"
    path.write_text("groups: [{name: a, cpus: 1, memory: 4Gi, roles: [trainers]}]\nreference: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_infra(path)
    assert not [p for p in caught.value.problems if "sources[]" in p.fix or "at least" in p.what]


def test_a_grader_alone_is_not_called_a_recipe():
    with pytest.raises(ConfigError) as caught:
        parse_grader("{type: nope}", "GRADER")
    (problem,) = caught.value.problems
    assert problem.where == "GRADER:1"
