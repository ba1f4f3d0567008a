"""The page in a real browser: it draws, asks nothing of any network, obeys keys, runs no text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SECTIONS = (
    *("overview", "held-out", "learning", "mix", "time", "sync", "alarms", "faults"),
    *("cost", "samples", "recipe", "metrics"),
)
HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
    "<svg onload=window.hacked=3></svg><!--<script>${window.hacked=4}`$title $$data"
    "<a href=javascript:window.hacked=5>x</a><style>*{display:none}</style>"
    "<iframe srcdoc='<script>parent.hacked=6</script>'></iframe>&lt;b&gt;"
    "\u2028\u2029\u202e\x00\ud83d"
)
REWARD = '[data-chart="all/reward/mean"]'
CHOSEN = "return document.querySelector('.list [aria-selected=true]').dataset.key"


def is_clean(browser: Any, address: Path) -> bool:
    """Whether the page drew every section, without a word on the console or a request."""
    assert browser.complaints() == []
    assert browser.requests() == [address.as_uri()]
    assert browser.js("return !document.body.innerText.includes('could not be drawn')")
    return True


def test_every_section_is_drawn_and_nothing_is_asked_of_any_network(browser: Any, page: Any):
    address = page(steps=40, attempts=2)
    browser.open(address)
    assert is_clean(browser, address)
    assert browser.js("return [...document.querySelectorAll('section')].map(s => s.id)") == list(
        SECTIONS
    )
    for section in SECTIONS:
        text = browser.js("return document.getElementById(arguments[0]).innerText", section)
        assert len(text) > 20, section
    words = browser.js("return document.body.innerText")
    for said in (
        *("Before and after", "Spikiness: worst regression first", "regressed", "balanced"),
        *("weight sync tried again", "Staleness", "Sampler mismatch", "By role", "CPU-hours"),
        *("trained in vain", "Traceback", "length", "cafe", "advantage", "2.13.0"),
    ):
        assert said in words, said


def test_critics_teachers_and_rollbacks_are_drawn(
    browser: Any, make: Any, page_of: Any, add_rollback: Any, tmp_path: Path
):
    names = ("source/sums/all/teacher/kl", "train/critic/loss", "time/critic")
    names += ("train/critic/explained_variance", "alarm/guards/loss")
    run = make(tmp_path / "run", steps=12, more=dict.fromkeys(names, 0.25))
    add_rollback(run, 9, 6)
    address = page_of(run)
    browser.open(address)
    assert is_clean(browser, address)
    for chart in ("all/teacher/kl", "critic/loss", "critic/explained_variance"):
        assert browser.count(f'#learning [data-chart="{chart}"]') == 1, chart
    assert "reference and critic: score" in browser.text("#time")
    faults = browser.text("#faults")
    assert "What the guards did" in faults and "refused updates: 1" in faults
    assert browser.count(f"{REWARD} .mark:not(.calm)") == 1


@pytest.mark.parametrize("recipe", ["sft", "reward_model"])
def test_a_run_that_learns_from_rows_has_its_own_page(
    browser: Any, make: Any, page_of: Any, learn_from_rows: Any, tmp_path: Path, recipe: str
):
    run = make(tmp_path / "run", steps=8)
    learn_from_rows(run, recipe)
    address = page_of(run)
    browser.open(address)
    assert is_clean(browser, address)
    drawn = {"sft": 1, "reward_model": 3}[recipe]
    assert browser.count('#held-out [data-chart^="held-out-"]') == drawn
    assert "there is no mix" in browser.text("#mix")


def test_hostile_texts_are_shown_and_never_run(browser: Any, page: Any):
    address = page(text=HOSTILE, more={f"train/{HOSTILE[:60]}": 1.5, "__proto__": 2.0})
    browser.open(address)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
    browser.press("m", "s", "c", "r", "i", "p", "t")
    browser.wait("return document.querySelectorAll('#metrics [data-chart]').length === 1")
    assert browser.js("return window.hacked === undefined && window.parent.hacked === undefined")
    assert is_clean(browser, address)
    inside = "img, iframe, object, embed, a[href^=javascript], main style, main script, main link"
    assert browser.js("return document.querySelectorAll(arguments[0]).length", inside) == 0
    assert browser.js("return document.querySelectorAll('script').length") == 2
    shows = "return document.querySelector('.detail').textContent.includes(arguments[0])"
    assert browser.js(shows, "</script><script>window.hacked=1</script>")
    raw = address.read_text(encoding="utf-8")
    data = raw.split('id="data">')[1].split("</script>")[0]
    assert "<" not in data and json.loads(data)["run"]["name"] == "made"


def test_script_put_into_the_page_is_refused_by_its_policy(browser: Any, page: Any):
    browser.open(page(steps=2))
    browser.js(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
        "document.body.append(s);"
        "const i = document.createElement('img'); i.src = 'https://example.org/x.png';"
        "document.body.append(i);"
    )
    assert browser.js("return window.hacked === undefined")
    browser.wait("return document.querySelector('body > img').complete")
    assert browser.js("return document.querySelector('body > img').naturalWidth") == 0
    refusals = [c for c in browser.complaints() if "Content Security Policy" in c]
    assert len(refusals) == 2


def test_keys_move_through_samples_and_filters(browser: Any, page: Any):
    browser.open(page(steps=3))
    first = browser.js(CHOSEN)
    assert first.startswith("3/sums")
    browser.press("j", "j")
    third = browser.js(CHOSEN)
    browser.press("k")
    assert len({first, third, browser.js(CHOSEN)}) == 3
    assert browser.js(CHOSEN) in browser.js("return document.querySelector('.list').innerHTML")
    browser.press("/", *"train/2# answer 1")
    assert browser.js("return document.activeElement.id") == "find-sample"
    browser.wait("return document.querySelector('[data-count]').textContent.startsWith('2 of 24')")
    browser.press("\ue00c", "j")
    assert browser.js(CHOSEN) == "2/spelling/train/2#e0a0/1"
    assert "answer 1" in browser.js("return document.querySelector('.detail').textContent")


def test_filters_by_source_step_and_reward(browser: Any, page: Any):
    browser.open(page(steps=4))
    change = (
        "const el = document.querySelector(`[data-filter=${arguments[0]}]`);"
        "el.value = arguments[1]; el.dispatchEvent(new Event(el.tagName === 'SELECT' ? 'change' :"
        " 'input'))"
    )
    count = "return document.querySelector('[data-count]').textContent"
    assert browser.js(count) == "32 of 32 rollouts"
    for key, value, left in (
        *(("source", "spelling", 16), ("from", "3", 8), ("least", "0.5", 4)),
        *(("most", "0.6", 2), ("to", "3", 1), ("status", "invalid", 1)),
    ):
        browser.js(change, key, value)
        assert browser.js(count).startswith(f"{left} of 32"), key
    browser.js(change, "from", "99")
    assert "None fits" in browser.js("return document.querySelector('.list').innerText")
    browser.press("j", "k", "c")
    assert browser.complaints() == []


def test_tokens_are_coloured_and_masked_ones_dimmed(browser: Any, page: Any):
    browser.open(page(steps=2))
    assert browser.count(".tokens .masked") == 4
    sampled = "document.querySelectorAll('.tok:not(.masked)')"
    paints = f"return [...{sampled}].map(t => t.style.backgroundColor)"
    by_mode: dict[str, list[str]] = {}
    for _ in range(3):
        mode = browser.js(
            "return document.querySelector('[data-mode][aria-pressed=true]').dataset.mode"
        )
        by_mode[mode] = browser.js(paints)
        browser.press("c")
    assert set(by_mode) == {"advantage", "logprob", "mismatch"}
    assert all(len(set(p)) > 3 for p in by_mode.values()), by_mode
    assert {p.split(",")[0] for p in by_mode["advantage"]} == {"rgba(var(--up)", "rgba(var(--down)"}
    resolved = browser.js(
        "return getComputedStyle(document.querySelector('.tok:not(.masked)')).backgroundColor"
    )
    assert resolved.startswith("rgba(") and resolved != "rgba(0, 0, 0, 0)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_modes_have_contrast(browser: Any, page: Any, scheme: str):
    browser.open(page(steps=2), scheme=scheme)
    assert browser.js("return document.documentElement.dataset.theme") == scheme
    for ink in ("--ink", "--soft", "--accent", "--bad", "--good"):
        for ground in ("--bg", "--panel", "--sunk"):
            assert contrast(browser, ink, ground) >= 4.5, (ink, ground)
    for badge in ("good", "warn", "bad", "accent"):
        assert contrast(browser, f"--{badge}", f"--{badge}-bg") >= 4.5, badge
    for n in range(9):
        assert contrast(browser, f"--c{n}", "--panel") >= 3, n
    browser.press("t")
    assert browser.js("return document.documentElement.dataset.theme") != scheme


def contrast(browser: Any, ink: str, ground: str) -> float:
    """Return the contrast ratio of two colours of the page, as WCAG reckons it."""
    name = "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0]).trim()"
    light = sorted(luminance(browser.js(name, each)) for each in (ink, ground))
    return (light[1] + 0.05) / (light[0] + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_control_has_a_name_and_every_chart_its_table(browser: Any, page: Any):
    browser.open(page(steps=5))
    unnamed = browser.js(
        "return [...document.querySelectorAll(arguments[0])].filter(e => !(e.textContent.trim() ||"
        " e.getAttribute('aria-label') || e.labels?.length)).map(e => e.outerHTML)",
        'button, input, select, a, [tabindex="0"]',
    )
    assert unnamed == []
    charts = browser.count("[data-chart]")
    assert charts > 15
    browser.js("document.querySelectorAll('[data-chart] details').forEach(d => { d.open = true })")
    browser.wait(
        "return document.querySelectorAll('[data-chart] details table').length === arguments[0]",
        charts,
    )
    assert browser.count("[data-chart] .plot svg") == charts and browser.count("h1") == 1


def test_a_chart_tells_its_values_by_keys_and_hides_lines(browser: Any, page: Any):
    browser.open(page(steps=5))
    browser.js("document.querySelector(arguments[0]).focus()", f"{REWARD} .plot")
    browser.press("\ue012")
    tip = browser.text(f"{REWARD} .tip")
    assert tip.startswith("step 5") and "sums" in tip and "spelling" in tip
    browser.js("document.querySelector(arguments[0]).click()", f"{REWARD} .legend button")
    assert browser.count(f"{REWARD} .plot path.ln") == 1
    browser.js(
        "const el = document.getElementById('smoothing'); el.value = 0.9;"
        "el.dispatchEvent(new Event('input'))"
    )
    assert browser.count(f"{REWARD} .plot path.ln") == 2  # the raw values stay, behind


def test_missing_steps_are_gaps(browser: Any, page: Any):
    browser.open(page(steps=20, missing_steps=(7, 8, 9)))
    line = f"{REWARD} .plot path.ln"
    path = browser.js("return document.querySelector(arguments[0]).getAttribute('d')", line)
    assert path.count("M") == 2


def test_the_page_of_200_steps_stays_small(browser: Any, page: Any):
    many = {f"train/number_{i}": 0.12345678 + i for i in range(400)}
    address = page(
        steps=200, tokens=100, sources=("a", "b", "c", "d", "e"), more=many, text="word " * 80
    )
    assert address.stat().st_size < 3_000_000
    browser.open(address)
    assert is_clean(browser, address)


ODD_ROWS = '{"step": 1}\n{"step": "x"}\n{"tokens": 4, "step": 2}\n'
ODD_ROLLOUT = {"step": 1, "tokens": {"text": ["a"], "sampled": [[0, 1]]}, "prompt": 3}


def spoil(run: Path, how: str) -> None:
    """Make a run directory one that a crash, another version or a person left."""
    records, rollouts = list(run.glob("*.jsonl")), list(run.glob("rollouts/*.jsonl"))
    files = [p for p in run.iterdir() if p.is_file()]
    match how:
        case "no records":
            for path in records:
                path.unlink()
        case "recipe alone":
            for path in files:
                path.unlink() if path.name != "config.yaml" else None
        case "no recipe":
            (run / "config.yaml").unlink()
        case "torn recipe":
            (run / "config.yaml").write_text("sources: 3\nname: [1")
        case "odd recipe":
            (run / "config.yaml").write_text("sources: [3, {name: 2}]\nweight_sync: 4")
        case "torn record":
            (run / "run.json").write_text('{"id": 3')
        case "torn ends":
            for path in records:
                path.write_bytes(path.read_bytes()[:-40])
        case "damaged lines":
            for path in records:
                path.write_bytes(b"\x00\xff{]\n[1]\n3\n" + path.read_bytes())
        case "empty files":
            for path in files:
                path.write_text("") if path.name != "run.json" else None
        case "odd rows":
            for path in (*records, *rollouts):
                path.write_text(ODD_ROWS)
        case "odd rollouts":
            for path in rollouts:
                path.write_text(json.dumps({**ODD_ROLLOUT, "reward_parts": []}) + "\n{")
        case _:
            raise AssertionError(how)


SPOILT = (
    *("no records", "recipe alone", "no recipe", "torn recipe", "odd recipe", "torn record"),
    *("torn ends", "damaged lines", "empty files", "odd rows", "odd rollouts"),
)


@pytest.mark.parametrize("how", SPOILT)
def test_a_partial_run_is_shown_with_what_it_lacks(
    browser: Any, make: Callable[..., Path], page_of: Any, tmp_path: Path, how: str
):
    run = make(tmp_path / "run", steps=8, attempts=2)
    spoil(run, how)
    address = page_of(run)
    browser.open(address)
    assert is_clean(browser, address)
    assert browser.js("return document.querySelectorAll('.notes li').length") > 0


def test_a_run_of_no_steps_says_so(browser: Any, page: Any):
    address = page(steps=0, num_steps=5)
    browser.open(address)
    assert is_clean(browser, address)
    words = browser.js("return document.body.innerText")
    assert "no step has been trained yet" in words and "before its first step" in words
