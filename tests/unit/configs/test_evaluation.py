from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.evaluation import check_eval, doublings, due_sources, eval_settings, warn_eval
from configs.load import load_recipe
from configs.schema import RunConfig

RECIPE = """
name: t
num_steps: 100
model: {{path: org/model, max_model_len: 256}}
sources:
  - name: sums
    data: {{procedural: reasoning_gym/chain_sum, held_out: 50}}
    rewards: [{{name: right, use: exact}}]
    sampling: {{temperature: 0.9, max_tokens: 64}}
    eval: {own}
  - name: words
    data: {{procedural: reasoning_gym/spell_backward}}
    rewards: [{{name: right, use: exact, weight: {weight}}}]
batch: {{groups_per_step: 8}}
eval: {run}
"""


@pytest.fixture
def make(tmp_path: Path):
    def make(*, run: str = "{}", own: str = "{}", weight: float = 1.0) -> RunConfig:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.format(run=run, own=own, weight=weight))
        return load_recipe(path)

    return make


def test_defaults_come_from_training(make):
    settings = eval_settings(make(), make().source("sums"))
    assert (settings.temperature, settings.max_tokens) == (0.9, 64)
    assert (settings.n, settings.samples, settings.pass_at) == (None, 1, (1,))


def test_a_sources_own_settings_win_over_the_runs(make):
    cfg = make(
        run="{every: 10, n: 20, samples: 8, temperature: 0.5, max_tokens: 32, pass_threshold: 0.5}",
        own="{every: 0, n: 5, samples: 6, temperature: 0.0001, max_tokens: 16, pass_at: [1, 6]}",
    )
    own, other = (eval_settings(cfg, s) for s in cfg.sources)
    assert (own.every, own.n, own.samples, own.pass_at) == (0, 5, 6, (1, 6))
    assert (own.temperature, own.max_tokens, own.pass_threshold) == (0.0001, 16, 0.5)
    assert (other.every, other.n, other.samples) == (10, 20, 8)
    assert (other.temperature, other.max_tokens) == (0.5, 32)
    assert other.pass_at == (1, 2, 4, 8)


def test_greedy_is_a_setting_and_not_a_missing_one(make):
    cfg = make(run="{temperature: 0}")
    assert eval_settings(cfg, cfg.source("sums")).temperature == 0


@pytest.mark.parametrize(
    ("largest", "ks"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))],
)
def test_doublings(largest: int, ks: tuple[int, ...]):
    assert doublings(largest) == ks


def test_who_is_due_when(make):
    cfg = make(run="{every: 10}", own="{every: 4}")
    due = {s: due_sources(cfg, s, last=s == 100) for s in (0, 3, 4, 10, 20, 99, 100)}
    assert due == {
        0: ("sums", "words"),
        3: (),
        4: ("sums",),
        10: ("words",),
        20: ("sums", "words"),
        99: (),
        100: ("sums", "words"),
    }


def test_start_and_end_may_be_left_out_and_a_last_step_that_is_due_is_not(make):
    cfg = make(run="{every: 25, at_start: false, at_end: false}", own="{every: 0}")
    assert due_sources(cfg, 0, last=False) == ()
    assert due_sources(cfg, 99, last=True) == ()
    assert due_sources(cfg, 100, last=True) == ("words",)


GREEDY = "{temperature: 0, samples: 3}"
WATCH = "{every: 5, patience: 2, watch: sums}"
PROBLEMS = [
    ("k beyond the samples", "{pass_at: [1, 2]}", "{}", "eval.pass_at"),
    ("a source's k", "{samples: 4}", "{pass_at: [8]}", "sources.sums.eval.pass_at"),
    ("too few samples", "{samples: 4, pass_at: [4]}", "{samples: 2}", "eval.pass_at"),
    ("a k twice", "{samples: 2, pass_at: [2, 2]}", "{}", "eval.pass_at"),
    ("more items than there are", "{}", "{n: 51}", "sources.sums.eval.n"),
    ("no room for a prompt", "{max_tokens: 256}", "{}", "eval.max_tokens"),
    ("a source without room", "{}", "{max_tokens: 300}", "sources.sums.eval.max_tokens"),
    ("greedy samples", "{temperature: 0, samples: 2}", "{}", "eval.temperature"),
    ("a source's greedy samples", "{}", GREEDY, "sources.sums.eval.temperature"),
    ("nobody to watch", "{every: 5, patience: 2, watch: sum}", "{}", "eval.watch"),
    ("patience without evaluations", "{patience: 2}", "{}", "eval.patience"),
    ("watching nothing that moves", WATCH, "{every: 0}", "eval.patience"),
]


@pytest.mark.parametrize(
    ("run", "own", "where"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS]
)
def test_each_problem_is_found_alone_with_a_remedy(make, run: str, own: str, where: str):
    problems = list(check_eval(make(run=run, own=own)))
    assert [p.where for p in problems] == [where], problems
    assert problems[0].what and problems[0].fix


@pytest.mark.parametrize(
    ("run", "own", "where"),
    [
        ("{every: -1}", "{}", "eval.every"),
        ("{samples: 0}", "{}", "eval.samples"),
        ("{max_regression: 1.5}", "{}", "eval.max_regression"),
        ("{patience: -2}", "{}", "eval.patience"),
        ("{pass_at: [0]}", "{}", "eval.pass_at.0"),
        ("{temperature: -0.5}", "{}", "eval.temperature"),
        ("{}", "{n: 0}", "sources.sums.eval.n"),
        ("{}", "{evry: 5}", "sources.sums.eval.evry"),
        ("{}", "{patience: 5}", "sources.sums.eval.patience"),
    ],
)
def test_values_out_of_range_name_their_field(make, run: str, own: str, where: str):
    with pytest.raises(ConfigError) as caught:
        make(run=run, own=own)
    problems = caught.value.problems
    assert [p.where.split(" ")[0] for p in problems] == [where], problems


def test_all_problems_come_at_once_and_each_once(make):
    cfg = make(
        run="{temperature: 0, samples: 2, pass_at: [9], watch: nobody, patience: 1}",
        own="{n: 99, max_tokens: 999}",
    )
    assert sorted(p.where for p in check_eval(cfg)) == [
        "eval.pass_at",
        "eval.temperature",
        "eval.watch",
        "sources.sums.eval.max_tokens",
        "sources.sums.eval.n",
    ]


@pytest.mark.parametrize(
    ("run", "own", "weight", "where"),
    [
        ("{every: 101}", "{}", 1.0, "eval.every"),
        ("{}", "{every: 101}", 1.0, "sources.sums.eval.every"),
        ("{watch: sums}", "{}", 1.0, "eval.watch"),
        ("{}", "{}", 0.5, "eval.pass_threshold"),
        ("{}", "{pass_threshold: 1.5}", 1.0, "sources.sums.eval.pass_threshold"),
    ],
)
def test_what_is_probably_not_meant(make, run: str, own: str, weight: float, where: str):
    cfg = make(run=run, own=own, weight=weight)
    assert list(check_eval(cfg)) == []
    assert [w.where for w in warn_eval(cfg)] == [where]
