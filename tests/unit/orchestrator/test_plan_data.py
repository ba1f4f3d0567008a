"""What a plan says of the data: sizes, longest prompts, what evaluation asks too."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from configs.errors import ConfigError
from configs.load import load_recipe
from configs.schema import RunConfig
from orchestrator.planning import data as plan_data
from orchestrator.planning.plan import RunPlan, make_plan
from orchestrator.planning.table import render_plan
from orchestrator.run import check

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs" / "models" / "tiny"


def recipe(folder: Path, sources: dict[str, Sequence[str]], **changes: object) -> Path:
    """Write a recipe of JSONL sources with the given prompts, one of each held out."""
    entries: list[dict[str, object]] = []
    for name, prompts in sources.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": p, "answer": "1"}) + "\n" for p in prompts))
        entries.append(
            {
                "name": name,
                "data": {"jsonl": str(path), "held_out": 1},
                "rewards": [{"name": "r", "use": "exact"}],
                "sampling": {"max_tokens": 28},
            }
        )
    data = {
        "name": "small",
        "num_steps": 30,
        "model": {"path": str(TINY), "max_model_len": 128},
        "sources": entries,
        "batch": {"groups_per_step": 4},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**data, **changes}))
    return path


def plan(folder: Path, sources: dict[str, Sequence[str]], *overrides: str) -> RunPlan:
    return make_plan(load_recipe(recipe(folder, sources), overrides))


def test_rows_are_counted_and_the_longest_prompt_is_found(tmp_path: Path):
    prompts = [f"item {i}" for i in range(10)] + ["the longest of all, item 11"]
    (d,) = plan(tmp_path, {"a": prompts}, "sources.a.instruction=Be brief.").data
    assert (d.items, d.held_out, d.prompts_seen) == (10, 1, 11)
    assert d.longest_chars == len("the longest of all, item 11") + len("Be brief.")
    assert d.tokens_counted and d.longest_tokens is not None
    assert 5 < d.longest_tokens <= d.longest_chars


def test_tokens_are_those_of_the_model_s_tokenizer(tmp_path: Path):
    from tokenizers import Tokenizer

    text = "Spell this word backward (example: sun -> nus): lamp"
    (d,) = plan(tmp_path, {"a": ["x", text, "y"]}).data
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert d.longest_tokens == len(tokenizer.encode(text, add_special_tokens=False))


def test_epochs_of_a_file_s_rows_are_in_the_plan(tmp_path: Path):
    made = plan(tmp_path, {"a": [f"item {i}" for i in range(11)]})
    assert made.sources[0].epochs == 12.0  # 30 steps of 4 groups over 10 items


def test_procedural_items_are_counted_and_not_made():
    made = make_plan(load_recipe(ROOT / "configs/recipes/quickstart.yaml"))
    assert [(d.items, d.held_out, d.prompts_seen) for d in made.data] == [(1000, 100, 0)] * 3
    assert all(d.longest_tokens is None for d in made.data)


def test_a_prompt_without_room_for_its_completion_is_a_problem(tmp_path: Path):
    long = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2
    made = plan(tmp_path, {"a": ["x", "y", long], "b": ["x2", "y2"]})
    (problem,) = made.problems
    assert problem.where == "sources.a.sampling.max_tokens"
    assert "is 28" in problem.what and "or more" in problem.what
    assert "max_model_len=128" in problem.what
    longest = made.data[0].longest_tokens
    assert longest is not None and f"{longest} tokens" in problem.what
    fits = plan(tmp_path, {"a": ["x", "y", long]}, f"sources.a.sampling.max_tokens={128 - longest}")
    assert fits.problems == ()


def test_without_a_tokenizer_the_length_is_an_estimate_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plan_data, "find_model_folder", lambda path: None)
    made = plan(tmp_path, {"a": ["x", "w" * 401]})
    (d,) = made.data
    assert (d.longest_tokens, d.tokens_counted) == (101, False)
    assert made.problems == ()
    (warning,) = [w for w in made.warnings if w.where.startswith("sources.a.sampling")]
    assert "about 101 tokens (at 4 characters each)" in warning.what


def test_large_files_are_left_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = {"a": ["a1", "a2"], "b": [f"item {i}" for i in range(100)]}
    monkeypatch.setattr(plan_data, "READ_BYTES", 500)
    a, b = plan(tmp_path, rows).data
    assert (a.items, a.prompts_seen) == (1, 2)
    assert (b.items, b.held_out, b.longest_chars) == (99, None, None)


def test_the_table_fits_a_terminal_of_80_columns(tmp_path: Path):
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(render_plan(plan(tmp_path, {"arith": ["x " * 30, "y"], "b": ["z1", "z2"]})))
    text = console.export_text()
    assert "epochs in run" in text and "60 chars" in text and " of 128" in text
    assert "…" not in text[text.index("epochs in run") : text.index("batch:")]


LEAK = {"a": ["q1", "q2", "q3"], "b": ["q1", "q2", "q3", "q4"]}


def test_what_evaluation_asks_is_a_problem_of_plan_and_run(tmp_path: Path):
    cfg = load_recipe(recipe(tmp_path, LEAK))
    problems = make_plan(cfg).problems
    assert problems and all("training prompts ask what evaluation asks" in p.what for p in problems)
    with pytest.raises(ConfigError) as caught:
        check(cfg)
    assert tuple(caught.value.problems) == problems


def test_dropped_prompts_are_a_warning_and_not_trained_on(tmp_path: Path):
    cfg = load_recipe(recipe(tmp_path, LEAK, decontaminate={"action": "drop"}))
    made = make_plan(cfg)
    assert made.problems == ()
    assert any("not trained on" in w.what for w in made.warnings)
    sources, found = check(cfg)
    asked = {t.prompt for s in sources.values() for t in s.held_out()}
    trained = {s.task(i).prompt for s in sources.values() for i in range(s.size)}
    assert found.matches and not asked & trained


@pytest.mark.parametrize(
    ("changes", "where", "says"),
    [
        ({"decontaminate": {"action": "delete"}}, "decontaminate.action", "refuse"),
        ({"decontaminate": {"ngram": 1}}, "decontaminate.ngram", "2"),
        ({"decontaminate": {"ngram": 8.5}}, "decontaminate.ngram", "whole number"),
        ({"decontaminate": {"max_overlap": 1.5}}, "decontaminate.max_overlap", "1"),
        ({"decontaminate": {"max_overlap": -0.1}}, "decontaminate.max_overlap", "0"),
        ({"decontaminate": {"ngrams": 8}}, "decontaminate", "Did you mean `ngram`?"),
        ({"decontaminate": {"procedural": "maybe"}}, "decontaminate.procedural", "true or false"),
        ({"decontaminate": "off"}, "decontaminate", "must be"),
    ],
)
def test_bad_decontamination_is_refused(
    tmp_path: Path, changes: dict[str, object], where: str, says: str
):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, {"a": ["x", "y"]}, **changes))
    (problem,) = caught.value.problems
    assert problem.where.split()[-1].startswith(where) or where in problem.where
    assert says in str(problem)


def test_leaks_of_several_sources_are_told_at_once_with_other_problems(tmp_path: Path):
    both = {"a": ["same", "same 2"], "b": ["same 2", "same"], "c": ["z1", "z2"]}
    cfg = load_recipe(recipe(tmp_path, both), ["sources.c.advantage.use=no_such"])
    with pytest.raises(ConfigError) as caught:
        check(cfg)
    wheres = [p.where for p in caught.value.problems]
    assert "sources.c.advantage" in wheres
    assert len(wheres) == len(set(wheres))


def test_a_run_config_searches_by_default():
    assert RunConfig.model_fields["decontaminate"].default.action == "refuse"


def test_a_template_that_the_rows_lack_is_a_problem_of_the_plan():
    path, model = ROOT / "configs/recipes/json_extraction.yaml", "model.path=configs/models/tiny"
    assert make_plan(load_recipe(path, [model])).problems == ()
    grader = "sources.lists.rewards.fields.grader"
    cfg = load_recipe(path, [model, f"{grader}.reference='{{{{ item.fond }}}}'"])
    (problem,) = make_plan(cfg).problems
    assert problem.where == f"{grader}.reference"
    assert "the row has no `fond`" in problem.what and "80 of 80 rows" in problem.what
    assert problem.fix == "Did you mean `found`?"
