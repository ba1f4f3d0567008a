"""Overlap of training and held-out prompts: hand-made cases, and against a plain definition."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.data import DataConfig
from configs.errors import ConfigError
from configs.schema import (
    BatchConfig,
    DecontaminateConfig,
    ModelConfig,
    RewardConfig,
    RunConfig,
    SourceConfig,
)
from mixing.sources.decontaminate import (
    Contamination,
    HeldOutIndex,
    ThinnedSource,
    asked_text,
    decontaminate,
    find_contamination,
    words,
)
from rollouts.types import Message, Task


def prompt(text: str, *, system: str = "") -> tuple[Message, ...]:
    user = Message(role="user", content=text)
    return (Message(role="system", content=system), user) if system else (user,)


def task(source: str, split: str, item: int, text: str) -> Task:
    return Task(
        task_id=f"{source}/{split}/{item}",
        source=source,
        prompt=prompt(text),
        answer=None,
        metadata={},
    )


@dataclass
class Texts:
    """A source of given prompts."""

    name: str
    training: Sequence[str]
    evaluation: Sequence[str] = ()

    @property
    def size(self) -> int:
        return len(self.training)

    @property
    def fingerprint(self) -> str:
        return f"{self.name}{self.training}{self.evaluation}"

    def task(self, item: int) -> Task:
        return task(self.name, "train", item, self.training[item])

    def offline_rates(self) -> NDArray[np.float64]:
        return np.arange(len(self.training)) / 10

    def held_out(self) -> tuple[Task, ...]:
        return tuple(task(self.name, "held_out", i, t) for i, t in enumerate(self.evaluation))


def recipe(names: Sequence[str], *, procedural: Sequence[str] = (), **how: object) -> RunConfig:
    return RunConfig(
        name="t",
        num_steps=1,
        model=ModelConfig(path="m"),
        batch=BatchConfig(groups_per_step=1),
        sources=tuple(
            SourceConfig(
                name=name,
                data=DataConfig(procedural="reasoning_gym/lcm")
                if name in procedural
                else DataConfig(jsonl="x"),
                rewards=(RewardConfig(name="r", use="exact"),),
            )
            for name in names
        ),
        decontaminate=DecontaminateConfig.model_validate(how),
    )


def search(*sources: Texts, procedural: Sequence[str] = (), **how: object) -> Contamination:
    cfg = recipe([s.name for s in sources], procedural=procedural, **how)
    return find_contamination(cfg, {s.name: s for s in sources})


def pairs(found: Contamination) -> list[tuple[str, str, float]]:
    return [(m.task_id, m.held_out_id, m.overlap) for m in found.matches]


STORY = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
"""14 words: two 13-grams."""


@pytest.mark.parametrize(
    ("training", "overlap"),
    [
        (STORY, 1.0),
        (f"Before all that, {STORY.upper()}! And after.", 1.0),
        (STORY.replace(" ", ",\n  "), 1.0),
        (STORY.removesuffix(" fourteen"), 0.5),
        (STORY.removeprefix("one "), 0.5),
        (STORY.replace("seven", "7"), None),
        (" ".join(reversed(STORY.split())), None),
        ("one two three", None),
    ],
)
def test_overlap_is_the_share_of_the_held_out_prompt(training: str, overlap: float | None) -> None:
    found = search(Texts("a", [training], [STORY]), max_overlap=0.4)
    expected = [] if overlap is None else [("a/train/0", "a/held_out/0", overlap)]
    assert pairs(found) == expected
    assert (found.searched, found.held_out) == ({"a": 1}, 1)


def test_the_bound_itself_is_allowed() -> None:
    half = Texts("a", [STORY.removeprefix("one ")], [STORY])
    assert pairs(search(half, max_overlap=0.5)) == []
    assert len(pairs(search(half, max_overlap=0.49))) == 1


def test_a_long_training_prompt_that_quotes_the_question_is_found() -> None:
    noise = [f"word{i}" for i in range(500)]
    for at in range(0, 40):
        quoted = " ".join([*noise[:at], STORY, *noise[at:]])
        assert pairs(search(Texts("a", [quoted], [STORY])))[0][2] == 1.0, at


def test_short_prompts_are_compared_whole() -> None:
    found = search(
        Texts(
            "a",
            ["what is  4 - 1?", "What is 4 + 1?", "so what is 4 - 1", "WHAT IS 4 - 1", "(2+3)*4"],
            ["What is 4 - 1?", "2+(3*4)"],
        )
    )
    assert [p[:2] for p in pairs(found)] == [
        ("a/train/0", "a/held_out/0"),
        ("a/train/3", "a/held_out/0"),
    ]


def test_prompts_without_a_word_are_told_apart() -> None:
    found = search(Texts("a", ["?!", "🐶", "..."], ["🐱", "?!", "!?"]))
    assert [p[:2] for p in pairs(found)] == [("a/train/0", "a/held_out/1")]


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("Café au lait", "CAFE\u0301 AU LAIT"),
        ("ＡＢＣ　１２", "abc 12"),
        ("Straße", "STRASSE"),
        ("ﬁne \u00a0 print", "fine print"),
    ],
)
def test_unicode_forms_of_the_same_text_are_the_same(one: str, same: str) -> None:
    assert asked_text(prompt(one)) == asked_text(prompt(same))
    assert len(search(Texts("a", [one], [same])).matches) == 1


def test_scripts_without_spaces_have_n_grams() -> None:
    text = "小明有三个苹果他又买了五个苹果一共有几个"
    assert len(words(text)) == len(text)
    assert len(search(Texts("a", [f"问题：{text}？请回答。"], [text])).matches) == 1
    assert len(search(Texts("a", [text.replace("三", "四")], [text])).matches) == 0


def test_signs_count_and_punctuation_does_not() -> None:
    assert words("a, (b) - **c** -- x+1 = ½ ≤ 🐱.") == [
        *("a", "b", "-", "c", "x", "+", "1", "=", "½", "≤", "🐱")
    ]


def test_a_source_is_searched_for_every_source_s_held_out_prompts() -> None:
    other = " ".join(f"w{i}" for i in range(20))
    found = search(
        Texts("a", ["nothing of it", other], ["a of its own"]),
        Texts("b", [STORY], [other]),
        Texts("c", ["z"], [STORY]),
    )
    assert [(m.source, m.item, m.held_out_source) for m in found.matches] == [
        ("a", 1, "b"),
        ("b", 0, "c"),
    ]
    assert found.held_out == 3


def test_the_words_of_a_template_match_nobody() -> None:
    template = "Solve the following problem step by step and put the last number on a line: {}"
    questions = [
        f"{i} apples and {i + 90} pears for {i * 7} coins each cost what in shop {i * 13}"
        for i in range(40)
    ]
    asked = [template.format(q) for q in questions]
    found = search(Texts("a", asked[20:], asked[:20]), max_overlap=0.0)
    assert pairs(found) == []
    found = search(Texts("a", [*asked[20:], asked[3] + " Thank you"], asked[:20]))
    assert pairs(found) == [("a/train/20", "a/held_out/3", 1.0)]


def test_a_single_held_out_prompt_has_no_template() -> None:
    assert len(search(Texts("a", [STORY + " and more"], [STORY])).matches) == 1


def test_the_instruction_of_a_source_is_not_compared() -> None:
    how = DecontaminateConfig()
    held_out = Task(
        task_id="h", source="a", prompt=prompt("one", system=STORY), answer=None, metadata={}
    )
    index = HeldOutIndex({"a": [held_out]}, how)
    assert index.closest(prompt("two", system=STORY)) is None
    assert index.closest(prompt("one", system="another")) == ("a", "h", 1.0)


def plain_overlaps(training: str, evaluation: str, n: int) -> float:
    """The definition, without any index."""

    def grams(text: str) -> set[tuple[str, ...]]:
        w = words(asked_text(prompt(text)))
        return {tuple(w[i : i + n]) for i in range(len(w) - n + 1)}

    wanted = grams(evaluation)
    return len(grams(training) & wanted) / len(wanted) if wanted else 0.0


@pytest.mark.parametrize("seed", range(30))
def test_it_agrees_with_the_plain_definition(seed: int) -> None:
    draw = random.Random(seed)
    n, bound = draw.randint(2, 9), draw.choice([0.0, 0.3, 0.5, 0.9])
    evaluation = " ".join(f"e{draw.randrange(30)}" for _ in range(draw.randint(n, 60)))
    parts = evaluation.split()
    training: list[str] = []
    for _ in range(40):
        text: list[str] = []
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(parts))
            text += parts[at : at + draw.randint(1, 25)]
            text += [f"t{draw.randrange(30)}" for _ in range(draw.randint(0, 8))]
        training.append(" ".join(text))
    found = search(Texts("a", training, [evaluation]), ngram=n, max_overlap=bound)
    expected = {
        item: share
        for item, text in enumerate(training)
        if (share := plain_overlaps(text, evaluation, n)) > bound
    }
    assert {m.item: m.overlap for m in found.matches} == pytest.approx(expected)


def test_procedural_sources_are_asked_about_but_not_searched() -> None:
    made, rows = Texts("made", [STORY], [STORY]), Texts("rows", [STORY], ["x"])
    found = search(made, rows, procedural=["made"])
    assert [(m.source, m.held_out_source) for m in found.matches] == [("rows", "made")]
    cfg = recipe(["made", "rows"], procedural=["made"], action="refuse")
    how = cfg.decontaminate.model_copy(update={"procedural": True})
    found = find_contamination(
        cfg.model_copy(update={"decontaminate": how}), {"made": made, "rows": rows}
    )
    assert [m.source for m in found.matches] == ["made", "rows"]


LEAKY = Texts("leaky", ["a", "b", STORY, "c", "d", "e"], ["b", "d", STORY])


def test_refuse_names_both_sides_and_the_remedy() -> None:
    clean = Texts("clean", ["x"], ["y"])
    with pytest.raises(ConfigError) as caught:
        decontaminate(recipe(["leaky", "clean"]), {"leaky": LEAKY, "clean": clean})
    (problem,) = caught.value.problems
    assert problem.where == "sources.leaky.data"
    assert "3 of 6 training prompts" in problem.what
    assert "leaky/train/2 = leaky/held_out/2 (100%)" in problem.what
    assert "decontaminate.action" in problem.fix


def test_many_matches_are_counted_and_a_few_named() -> None:
    leaky = Texts("a", ["b"] * 50, ["b"])
    with pytest.raises(ConfigError) as caught:
        decontaminate(recipe(["a"]), {"a": leaky})
    assert "and 45 more" in str(caught.value)
    assert str(caught.value).count(" = ") == 5


def test_drop_trains_without_them_and_changes_the_fingerprint() -> None:
    sources, found = decontaminate(recipe(["leaky"], action="drop"), {"leaky": LEAKY})
    left = sources["leaky"]
    assert [left.task(i).task_id for i in range(left.size)] == [
        "leaky/train/0",
        "leaky/train/3",
        "leaky/train/5",
    ]
    assert left.fingerprint != LEAKY.fingerprint
    assert left.held_out() == LEAKY.held_out()
    rates = left.offline_rates()
    assert rates is not None and rates.tolist() == [0.0, 0.3, 0.5]
    (problem,) = found.problems(DecontaminateConfig(action="drop"))
    assert "not trained on" in problem.what and problem.fix == ""
    with pytest.raises(IndexError):
        left.task(3)


def test_drop_refuses_to_leave_a_source_empty() -> None:
    cfg = recipe(["a", "b"], action="drop")
    with pytest.raises(ConfigError) as caught:
        decontaminate(cfg, {"a": Texts("a", ["x", "y"], ["x", "y"]), "b": Texts("b", ["z"], ["z"])})
    assert [p.where for p in caught.value.problems] == ["sources.a.data", "sources.b.data"]
    assert "leaves none" in str(caught.value)


@pytest.mark.parametrize(("action", "matches"), [("warn", 3), ("off", 0)])
def test_warn_and_off_train_on_everything(action: str, matches: int) -> None:
    sources, found = decontaminate(recipe(["leaky"], action=action), {"leaky": LEAKY})
    assert sources["leaky"] is LEAKY
    assert len(found.matches) == matches
    assert len(found.problems(DecontaminateConfig())) == (1 if matches else 0)


@pytest.mark.parametrize("seed", range(20))
def test_a_thinned_source_has_what_is_left_in_order(seed: int) -> None:
    draw = random.Random(seed)
    whole = Texts("a", [f"p{i}" for i in range(draw.randint(2, 40))])
    dropped = {i for i in range(whole.size) if draw.random() < 0.4}
    left = ThinnedSource(whole, dropped)
    expected = [whole.task(i) for i in range(whole.size) if i not in dropped]
    assert [left.task(i) for i in range(left.size)] == expected
