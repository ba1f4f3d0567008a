"""Bad mixes: each fault is refused with field, value and remedy, and all of them at once."""

from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_recipe
from configs.schema import RunConfig
from configs.validate_mix import check_mix, check_weights, warn_mix

GATE = {"metric": "eval/a/pass_rate", "gte": 0.5}
AFTER = {"weights": {"b": 1}}


def recipe(sources: list[dict[str, object]] | None = None, **sections: object) -> RunConfig:
    """Return a recipe of sources `a` and `b`, or of those given, with sections replaced."""
    source = {
        "data": {"procedural": "reasoning_gym/lcm", "size": 10},
        "rewards": [{"name": "r", "use": "exact"}],
    }
    base = {
        "name": "t",
        "num_steps": 100,
        "model": {"path": "m"},
        "batch": {"groups_per_step": 4},
        "eval": {"every": 10},
        "sources": [
            {"name": name, **source, **more}
            for name, more in zip("ab", sources or [{}, {}], strict=False)
        ],
    }
    return RunConfig.model_validate(base | sections)


def stage(*stages: dict[str, object], **sections: object) -> RunConfig:
    return recipe(stages=stages, **sections)


BAD: list[tuple[str, RunConfig, str, str]] = [
    ("no weight at all", recipe([{"weight": 0}, {"weight": 0}]), "sources", "nothing to train on"),
    (
        "a stage without weight",
        stage({"weights": {"a": 0, "b": 0}}),
        "stages.0.weights",
        "nothing to train on",
    ),
    (
        "caps that cannot fill a step",
        recipe([{"limits": {"max_share": 0.3}}, {"limits": {"max_share": 0.5}}]),
        "sources",
        "allows a, b only 0.8 of a step",
    ),
    (
        "a cap that contradicts a stage",
        recipe(
            [{"limits": {"max_share": 0.3}}, {}],
            stages=[{"until": {"step": 5}, "weights": {"b": 0}}, AFTER],
        ),
        "stages.0.weights",
        "allows a only 0.3 of a step",
    ),
    (
        "limits below what the run asks",
        recipe([{"limits": {"max_items": 100}}, {"limits": {"max_epochs": 2}}]),
        "sources",
        "allow 120 groups in all; 100 steps of 4 ask for 400",
    ),
    (
        "unknown source in a stage",
        stage({"weights": {"aa": 1}}),
        "stages.0.weights.aa",
        "no source `aa`",
    ),
    (
        "unknown source in group sizes",
        stage({"group_size": {"x": 4}}),
        "stages.0.group_size.x",
        "no source `x`",
    ),
    ("an empty stage", stage({"until": {"step": 5}}, AFTER), "stages.0", "changes nothing"),
    (
        "steps that do not rise",
        stage({"until": {"step": 9}, **AFTER}, {"until": {"step": 9}, **AFTER}, AFTER),
        "stages.1.until.step",
        "not after the 9",
    ),
    (
        "no end before the last",
        stage(AFTER, AFTER),
        "stages.0.until",
        "no later stage would ever begin",
    ),
    (
        "a ramp on a metric",
        stage({"until": GATE, "ramp": "linear", **AFTER}, AFTER),
        "stages.0.ramp",
        "no last step",
    ),
    (
        "a ramp without end",
        stage({"ramp": "linear", **AFTER}),
        "stages.0.ramp",
        "no last step",
    ),
    (
        "a ramp to nothing",
        stage({"until": {"step": 5}, "ramp": "linear", "group_size": {"a": 2}}, AFTER),
        "stages.0.ramp",
        "has no weights",
    ),
    (
        "step and metric",
        stage({"until": {**GATE, "step": 5}, **AFTER}, AFTER),
        "stages.0.until",
        "has both",
    ),
    ("neither", stage({"until": {}, **AFTER}, AFTER), "stages.0.until", "neither a step nor"),
    (
        "no threshold",
        stage({"until": {"metric": "eval/a/pass_rate"}, **AFTER}, AFTER),
        "stages.0.until",
        "no threshold",
    ),
    (
        "two thresholds",
        stage({"until": {**GATE, "lte": 0.7}, **AFTER}, AFTER),
        "stages.0.until",
        "both gte and lte",
    ),
    (
        "patience with a step",
        stage({"until": {"step": 5, "patience": 3}, **AFTER}, AFTER),
        "stages.0.until",
        "go with a metric",
    ),
    (
        "a metric that is none",
        stage({"until": {"metric": "train/loss", "lte": 1}, **AFTER}, AFTER),
        "stages.0.until.metric",
        "`train/loss` is none of",
    ),
    (
        "a metric of another source",
        stage({"until": {"metric": "eval/c/pass_rate", "gte": 0.5}, **AFTER}, AFTER),
        "stages.0.until.metric",
        "no source `c`",
    ),
    (
        "a metric that nobody measures",
        stage({"until": GATE, **AFTER}, AFTER, eval={"every": 0}),
        "stages.0.until.metric",
        "eval.every is 0",
    ),
    (
        "a pass rate of 80",
        stage({"until": {**GATE, "gte": 80}, **AFTER}, AFTER),
        "stages.0.until.metric",
        "between 0 and 1",
    ),
    (
        "a wait that the run does not live to see",
        recipe(mix={"max_wait_s": 600}, health={"generate_s": 500}),
        "mix.max_wait_s",
        "is 600, but the run ends when a step's groups take health.generate_s=500",
    ),
    (
        "a metric at the very end",
        stage({"until": {"step": 5}, **AFTER}, {"until": GATE, **AFTER}),
        "stages.1.until",
        "nothing follows it",
    ),
]


@pytest.mark.parametrize(("cfg", "where", "what"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_a_bad_mix_is_refused_by_field_and_value(cfg: RunConfig, where: str, what: str) -> None:
    (problem,) = check_mix(cfg)
    assert problem.where == where and what in problem.what


def test_all_faults_are_told_at_once() -> None:
    cfg = stage(
        {"until": {"step": 9, "patience": 2}, "weights": {"x": 1}, "ramp": "linear"},
        {"until": {"step": 3}},
        {"until": {"metric": "eval/y/pass_rate"}, "weights": {"a": 0, "b": 0}},
    )
    assert [p.where for p in check_mix(cfg)] == [
        "stages.2.weights",
        "stages.0.weights.x",
        "stages.0.until",
        "stages.1",
        "stages.1.until.step",
        "stages.2.until",
        "stages.2.until",
        "stages.2.until.metric",
    ]


@pytest.mark.parametrize(
    ("line", "where", "what"),
    [
        ("weight: -1", "sources.a.weight", "at least 0, is -1"),
        ("weight: .inf", "sources.0.weight", "finite"),
        ("weight: .nan", "sources.0.weight", "finite"),
        ("limits: {max_epochs: 0}", "sources.a.limits.max_epochs", "more than 0, is 0"),
        ("limits: {max_items: 1.5}", "sources.a.limits.max_items", "whole number"),
        ("limits: {max_share: 1.5}", "sources.a.limits.max_share", "at most 1, is 1.5"),
        ("limits: {max_share: 0}", "sources.a.limits.max_share", "more than 0, is 0"),
        ("limits: {max_epoch: 2}", "sources.a.limits.max_epoch", "unknown key"),
    ],
)
def test_a_bad_field_of_a_source_is_refused(
    tmp_path: Path, line: str, where: str, what: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: t\nnum_steps: 1\nmodel: {path: m}\nbatch: {groups_per_step: 1}\nsources:\n"
        "  - name: a\n    data: {procedural: reasoning_gym/lcm}\n"
        f"    rewards: [{{name: r, use: exact}}]\n    {line}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    problem = caught.value.problems[0]
    assert where in problem.where and what in problem.what


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("mix: {strategy: quotas}", "mix.strategy"),
        ("mix: {unit: tokens}", "mix.unit"),
        ("mix: {temperature: 0}", "mix.temperature"),
        ("mix: {on_exhausted: renormalize}", "mix.on_exhausted"),
        ("stages: [{weights: {a: -1}}]", "stages.0.weights.a"),
        ("stages: [{until: {step: 0}, weights: {a: 1}}]", "stages.0.until.step"),
        ("stages: [{weights: {a: 1}, ramp: cosine}]", "stages.0.ramp"),
        ("stages: [{weigths: {a: 1}}]", "stages.0.weigths"),
    ],
)
def test_a_bad_section_is_refused(tmp_path: Path, line: str, where: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: t\nnum_steps: 1\nmodel: {path: m}\nbatch: {groups_per_step: 1}\nsources:\n"
        "  - {name: a, data: {procedural: reasoning_gym/lcm}, rewards: [{name: r, use: exact}]}\n"
        f"{line}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    (problem,) = caught.value.problems
    assert where in problem.where


def test_sound_mixes_are_let_through() -> None:
    good = [
        recipe([{"weight": 0}, {}]),
        recipe([{"limits": {"max_share": 0.5}}, {"limits": {"max_share": 0.5}}]),
        recipe([{"limits": {"max_items": 5}}, {}]),
        recipe(
            [{"limits": {"max_items": 5}}, {"limits": {"max_items": 5}}],
            mix={"on_exhausted": "repeat"},
        ),
        stage(
            {"until": {"step": 5}, "ramp": "linear", "weights": {"a": 0}},
            {"until": {"metric": "eval/b/reward_mean", "lte": -3, "patience": 4}, **AFTER},
            {"until": {"step": 50}, "group_size": {"a": 4}},
        ),
    ]
    for cfg in good:
        assert list(check_mix(cfg)) == []


def test_an_edit_is_checked_over_what_is_still_to_come() -> None:
    cfg = stage(
        {"until": {"step": 10}, "weights": {"b": 0}},
        {"until": GATE, "weights": {"a": 0}},
        {"weights": {"a": 1}},
    )
    off = {"a": 0.0}
    assert [p.where for p in check_weights(cfg, off, step=10)] == ["stages.0.weights"]
    assert list(check_weights(cfg, off, step=11)) == []
    (problem,) = check_weights(cfg, {"b": 0.0, "a": None}, step=11)
    assert problem.where == "stages.1.weights"


def test_what_is_probably_not_meant_is_warned_about() -> None:
    def warnings(cfg: RunConfig) -> list[tuple[str, str]]:
        return [(w.where, w.what[:12]) for w in warn_mix(cfg)]

    assert warnings(recipe()) == []
    assert warnings(recipe([{"weight": 0}, {}])) == [("sources.a.weight", "is 0, and no")]
    assert warnings(recipe([{"weight": 0.1}, {}])) == [("sources.a.weight", "gives 0.36 g")]
    assert warnings(recipe([{"weight": 0}, {}], stages=[{"weights": {"a": 3}}])) == []
    assert warnings(recipe(mix={"on_exhausted": "stop"})) == [("mix.on_exhausted", "is stop, but")]
    ahead = recipe([{"max_staleness": 100}, {"max_staleness": 99}])
    assert warnings(ahead) == [("sources.a.max_staleness", "is 100: all ")]
    late = stage({"until": {"step": 500}, **AFTER}, {"group_size": {"a": 1}})
    assert [w[0] for w in warnings(late)] == ["stages.0.until.step", "stages.1.group_size.a"]
