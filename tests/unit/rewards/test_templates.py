"""Templates name values of the row and of the answer, and do nothing else."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from rewards.score import GradeFailed
from rewards.subject import Subject
from rewards.templates import SampleFault, parse_template

ITEM = {
    "answer": "42",
    "n": 3,
    "x": 0.5,
    "none": None,
    "yes": True,
    "rows": [{"name": "a"}, {"name": "b", "tags": ["é"]}],
    "odd key": {"a.b": "dot", 'q"': "quote", "0": "zero"},
    "inject": "{{ item.answer }}",
    "é": "accent",
    "a-b": "dash",
}


def rendered(text: str, sample: str = "out") -> str:
    return parse_template(text).render(Subject.of_text(ITEM, sample))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{ item.answer }}", "42"),
        ("{{item.answer}}", "42"),
        ("a {{ item.n }} b {{ item.x }} c", "a 3 b 0.5 c"),
        ("{{ item.none }} {{ item.yes }}", "null true"),
        ("{{ item.rows[1].name }}", "b"),
        ("{{ item.rows[-1].tags }}", '["é"]'),
        ("{{ item['odd key'][\"a.b\"] }}", "dot"),
        ('{{ item["odd key"]["q\\""] }}', "quote"),
        ("{{ item['odd key'].0 }}", "zero"),
        ("{{ item.inject }}", "{{ item.answer }}"),
        ("{{ item.é }}{{ item.a-b }}", "accentdash"),
        ("{{ sample.output_text }}", "out"),
        ("{{ sample.choices[0].message.content }}", "out"),
        ("{{ \"{{\" }} {{ item.n }} {{ '}}' }}", "{{ 3 }}"),
        ("}} {a} {", "}} {a} {"),
    ],
)
def test_what_a_template_gives(text: str, value: str):
    assert rendered(text) == value


def test_json_of_the_answer_is_named_by_its_fields():
    assert rendered("{{ sample.output_json.a[0] }}", '{"a": [7]}') == "7"
    template = parse_template("{{ sample.output_json.a }}")
    assert template.value(Subject.of_text({}, '{"a": [7]}')) == [7]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ item.answer", "never closed"),
        ("{{ }}", "does not begin"),
        ("{{ answer }}", "does not begin"),
        ("{{ item.a | upper }}", "not a path"),
        ("{{ item.a() }}", "not a path"),
        ("{{ item.a + 1 }}", "not a path"),
        ("{{ item..a }}", "not a path"),
        ("{{ item[a] }}", "not a path"),
        ("{{ item['a }}", "not a path"),
        ("{{ .item }}", "not a path"),
        ("{{ item a }}", "not a path"),
        ("{% for x in item %}{{ x }}", "does not begin"),
        ("{{ [0] }}", "not a path"),
    ],
)
def test_what_is_no_template_is_refused(text: str, said: str):
    with pytest.raises(ConfigError, match=said):
        parse_template(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ item.anser }}", "the row has no `anser`"),
        ("{{ item.rows[2] }}", "has 2 items"),
        ("{{ item.rows.name }}", "is a list; write [0]"),
        ("{{ item.n.real }}", "has no parts"),
        ("{{ item.answer.__class__ }}", "has no parts"),
        ("{{ item.__class__ }}", "has no `__class__`"),
        ("{{ item.answer[0] }}", "has no parts"),
        ("{{ sample.output_tools[0].function }}", "the answer has no `output_tools`"),
    ],
)
def test_what_is_not_there_is_told(text: str, said: str):
    with pytest.raises(GradeFailed) as caught:
        rendered(text)
    assert caught.value.kind == "invalid_variable_error" and said in caught.value.message
    assert not isinstance(caught.value, SampleFault)


def test_a_field_that_the_answer_lacks_is_the_answer_s_fault():
    for sample, kind in (("not JSON", "sample_parse_error"), ("{}", "invalid_variable_error")):
        with pytest.raises(SampleFault) as caught:
            rendered("{{ sample.output_json.total }}", sample)
        assert caught.value.kind == kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="{} itemsaple.[]\"'0-_\\", max_size=30),
    st.dictionaries(st.sampled_from(["item", "a", "b", "0"]), JSON),
    st.text(max_size=10),
)
def test_rendering_fails_in_one_way_alone(text: str, item: dict[str, object], sample: str):
    try:
        template = parse_template(text)
    except ConfigError:
        return
    try:
        template.render(Subject.of_text(item, sample))  # type: ignore[arg-type]
    except GradeFailed as failed:
        assert failed.kind in ("invalid_variable_error", "sample_parse_error")


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=8), JSON)
def test_any_key_can_be_named_and_its_value_comes_back(key: str, value: object):
    quoted = json.dumps(key, ensure_ascii=False).replace("\\n", "\n")
    if "\\u" in quoted or "\\" in key or any(c in quoted for c in ("\\b", "\\f", "\\r", "\\t")):
        return
    if "}}" in key:
        return
    template = parse_template(f"{{{{ item[{quoted}] }}}}")
    assert template.value(Subject.of_text({key: value}, "")) == value  # type: ignore[dict-item]
