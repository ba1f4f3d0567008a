"""Clip ranges of sources: taken where the loss reads them, refused with a remedy elsewhere."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.algorithm import AlgorithmConfig
from configs.schema import RunConfig
from configs.validate import find_warnings
from orchestrator.planning.loss_check import check_loss
from orchestrator.planning.plan import make_plan

WRAPPED = "from trainer import loss\n\ndef mine(x):\n    return loss.ppo_clip(x, clip_low=0.1)\n"
PLAIN = "def mine(x, *, clip_low=0.2):\n    return clip_low * x.policy_logprobs\n"
ONE = "def mine(x):\n    return x.clip_high * x.policy_logprobs\n"


def recipe(loss: str, minibatches: int = 2, **clip: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 1,
            "model": {"path": "m"},
            "batch": {"groups_per_step": 2, "num_minibatches": minibatches},
            "algorithm": {"loss": {"use": loss}},
            "sources": [
                {
                    "name": "s",
                    "data": {"procedural": "reasoning_gym/lcm"},
                    "rewards": [{"name": "r", "use": "exact"}],
                    **clip,
                }
            ],
        }
    )


@pytest.mark.parametrize(
    ("source", "refused"),
    [(WRAPPED, []), (PLAIN, ["clip_low", "clip_high"]), (ONE, ["clip_low"])],
)
def test_a_range_that_the_loss_does_not_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, refused: list[str]
) -> None:
    (tmp_path / "losses_of_check_test.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    loss = "losses_of_check_test:mine"
    problems = check_loss(recipe(loss, clip_low=0.1, clip_high=0.5))
    assert [p.where for p in problems] == [f"sources.s.{field}" for field in refused]
    for problem, field in zip(problems, refused, strict=True):
        assert f"does not read {field}" in problem.what and loss in problem.what
        assert f"x.{field}" in problem.fix
    assert check_loss(recipe(loss)) == []


BARE = "def mine(x):\n    return x.advantages * x.policy_logprobs\n"
FINISHED = (
    "from trainer.loss import finish\n\n"
    "def mine(x):\n    return finish(x, x.advantages * x.policy_logprobs, {})\n"
)
WEIGHED = "def mine(x):\n    return x.loss_weight * x.correction * x.policy_logprobs\n"
ASKED: list[tuple[dict[str, object], dict[str, object], str, list[str]]] = [
    # of the source, of the algorithm, where the problem is, losses that read it
    ({"loss_weight": 0.5}, {}, "sources.s.loss_weight", [FINISHED, WEIGHED]),
    (
        {"truncated_loss_weight": 0},
        {},
        "sources.s.truncated_loss_weight",
        [FINISHED, WEIGHED],
    ),
    ({}, {"aggregation": "sequence_mean"}, "algorithm.aggregation", [FINISHED, WEIGHED]),
    ({}, {"kl": {"coef": 0.1}}, "algorithm.kl", [FINISHED]),
    ({"kl_coef": 0.1}, {}, "algorithm.kl", [FINISHED]),
    ({}, {"entropy": {"coef": 0.1}}, "algorithm.entropy", [FINISHED]),
    ({}, {"entropy": {"target": 0.1}}, "algorithm.entropy", [FINISHED]),
    ({}, {"correction": {"weight": "mask"}}, "algorithm.correction", [WEIGHED]),
]


@pytest.mark.parametrize(("own", "algorithm", "where", "readers"), ASKED)
def test_whatever_a_loss_of_ones_own_passes_over_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: dict[str, object],
    algorithm: dict[str, object],
    where: str,
    readers: list[str],
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for number, source in enumerate((BARE, FINISHED, WEIGHED, WRAPPED)):
        module = f"losses_{number}_of_check_test"
        (tmp_path / f"{module}.py").write_text(source)
        loss = f"{module}:mine"
        section = AlgorithmConfig.model_validate({**algorithm, "loss": {"use": loss}})
        cfg = recipe(loss, **own).model_copy(update={"algorithm": section})
        wanted = [] if source in (*readers, WRAPPED) else [where]
        assert [p.where for p in check_loss(cfg)] == wanted, source
        assert all(loss in p.what and "does not read" in p.what for p in check_loss(cfg))


@pytest.mark.parametrize("use", ["ppo_clip", "gspo", "cispo", "policy_gradient", "trust_region"])
def test_built_in_losses_read_what_they_share(use: str) -> None:
    sections = {"kl": {"coef": 0.1}, "entropy": {"coef": 0.1}, "aggregation": "sequence_mean"}
    section = AlgorithmConfig.model_validate({**sections, "loss": {"use": use}})
    cfg = recipe(use, loss_weight=0.5).model_copy(update={"algorithm": section})
    assert check_loss(cfg) == []


def test_a_kl_in_the_reward_is_no_matter_of_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "losses_kl_of_check_test.py").write_text(BARE)
    section = {"loss": {"use": "losses_kl_of_check_test:mine"}}
    kl = {"kl": {"coef": 0.1, "placement": "reward", "estimator": "k1"}}
    algorithm = AlgorithmConfig.model_validate({**section, **kl})
    assert check_loss(recipe("ppo_clip").model_copy(update={"algorithm": algorithm})) == []


def test_the_built_in_loss_reads_them_and_the_plan_asks() -> None:
    assert check_loss(recipe("ppo_clip", clip_low=0.1, clip_high=0.5)) == []
    assert check_loss(recipe("no_module_of_that_name:f", clip_low=0.1)) == []
    plan = make_plan(recipe("json:dumps", clip_low=0.1))
    assert "sources.s.clip_low" in [p.where for p in plan.problems]


@pytest.mark.parametrize(
    ("field", "value"),
    [("clip_low", 0.0), ("clip_low", 1.01), ("clip_low", -0.1), ("clip_high", 0.0)],
)
def test_ranges_that_are_none_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        recipe("ppo_clip", **{field: value})


def test_a_range_that_can_never_act_is_pointed_out() -> None:
    for minibatches, told in ((1, True), (2, False)):
        warnings = find_warnings(recipe("ppo_clip", minibatches, clip_high=0.5))
        assert ("sources.s.clip_high" in [w.where for w in warnings]) is told


@pytest.mark.parametrize("use", ["ppo_clip", "gspo", "cispo", "policy_gradient", "trust_region"])
def test_built_in_losses_are_known_without_torch(use: str) -> None:
    assert check_loss(recipe(use)) == []


def test_an_unknown_loss_is_refused_with_the_near_name() -> None:
    (problem,) = check_loss(recipe("gsop"))
    assert problem.where == "algorithm.loss"
    assert "trust_region" in problem.what and "Did you mean `gspo`?" in problem.fix


def test_an_unknown_argument_is_refused_with_those_there_are() -> None:
    algorithm = {"loss": {"use": "ppo_clip", "args": {"clip_hihg": 1, "dual_clip": 3}}}
    cfg = recipe("ppo_clip").model_copy(
        update={"algorithm": AlgorithmConfig.model_validate(algorithm)}
    )
    (problem,) = check_loss(cfg)
    assert problem.where == "algorithm.loss.args.clip_hihg"
    assert "clip_high" in problem.what and "dual_clip" in problem.what


@pytest.mark.parametrize("loss", ["policy_gradient", "trust_region"])
def test_a_loss_without_a_range_refuses_those_of_sources(loss: str) -> None:
    (problem,) = check_loss(recipe(loss, clip_low=0.1))
    assert problem.where == "sources.s.clip_low"


@pytest.mark.parametrize(
    ("use", "args", "wanted"),
    [
        ("trust_region", {"divergence": "tv", "bound": 0.2}, None),
        ("trust_region", {"divergence": "js"}, "'tv' or 'kl'"),
        ("trust_region", {"bound": 0}, "a number above 0"),
        ("ppo_clip", {"dual_clip": 3, "clip_low": 0.1}, None),
        ("ppo_clip", {"dual_clip": None}, None),
        ("ppo_clip", {"dual_clip": 1.0}, "a number above 1"),
        ("ppo_clip", {"clip_high": None}, "a number above 0"),
        ("gspo", {"clip_low": "3e-4"}, "a number above 0"),
        ("cispo", {"clip_high": True}, "a number above 0"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    use: str, args: dict[str, object], wanted: str | None
) -> None:
    cfg = recipe("ppo_clip")
    loss = cfg.algorithm.loss.model_copy(update={"use": use, "args": args})
    cfg = cfg.model_copy(update={"algorithm": cfg.algorithm.model_copy(update={"loss": loss})})
    found = [p.what.partition("must be ")[2] for p in check_loss(cfg)]
    assert found == ([] if wanted is None else [wanted])
