"""Checks of how a source's reward parts are combined and credited."""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence

from configs.errors import Problem
from configs.graders.answers import FunctionGrader
from configs.graders.rft import MultiGrader
from configs.graders.steps import StepsGrader
from configs.objective import GateConfig
from configs.schema import SourceConfig


def check_parts(source: SourceConfig) -> Iterator[Problem]:
    """Yield every problem of the source's objective and of its parts' credit."""
    yield from _check_gates(source)
    yield from _check_combine(source)
    yield from _check_weights(source)
    yield from _check_credit(source)


def _check_gates(source: SourceConfig) -> Iterator[Problem]:
    gates, parts = source.objective.gates, [r.name for r in source.rewards]
    known = True
    for i, gate in enumerate(gates):
        for field, name in (("part", gate.part), ("needs", gate.needs)):
            if name not in parts:
                known = False
                near = difflib.get_close_matches(name, parts, n=1, cutoff=0.5)
                fix = f"Did you mean `{near[0]}`?" if near else f"The parts are {_list(parts)}."
                where = f"{_at(source)}.gates.{i}.{field}"
                yield Problem(where=where, what=f"there is no reward part `{name}`", fix=fix)
    for (part, needs), count in Counter((g.part, g.needs) for g in gates).items():
        if count > 1:
            yield Problem(
                where=f"{_at(source)}.gates",
                what=f"{count} gates keep `{part}` behind `{needs}`",
                fix="Keep the one with the higher `at_least`.",
            )
    for part in sorted({g.part for g in gates}):
        if len({g.otherwise for g in gates if g.part == part}) > 1:
            yield Problem(
                where=f"{_at(source)}.gates",
                what=f"the gates of `{part}` differ in `otherwise`, so its value behind two closed "
                "ones would hang on their order",
                fix="Give them the same `otherwise`.",
            )
    if known and (cycle := _cycle(gates)):
        yield Problem(
            where=f"{_at(source)}.gates",
            what=f"go round in a circle: {' needs '.join(f'`{name}`' for name in cycle)}",
            fix="Remove one of them; the first part, such as correctness, needs none.",
        )


def _cycle(gates: Sequence[GateConfig]) -> list[str]:
    """Return parts of which each needs the next, from one back to itself; empty if there are no
    such parts."""
    needs: dict[str, list[str]] = {}
    for gate in gates:
        needs.setdefault(gate.part, []).append(gate.needs)
    done: set[str] = set()

    def walk(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        for other in needs.get(name, []):
            if found := walk(other, [*above, name]):
                return found
        done.add(name)
        return []

    for name in needs:
        if found := walk(name, []):
            return found
    return []


_UNSCALED = ("mean_baseline", "rloo", "reinforce_pp", "reinforce_pp_baseline", "remax")
"""Estimators that do not divide a group's rewards by their spread."""


def _check_combine(source: SourceConfig) -> Iterator[Problem]:
    objective = source.objective
    if objective.combine == "formula" and not objective.formula:
        yield Problem(
            where=f"{_at(source)}.formula",
            what="is empty, although `combine` is `formula`",
            fix=f"Write an expression over {_list([r.name for r in source.rewards])}.",
        )
    if objective.combine != "formula" and objective.formula:
        yield Problem(
            where=f"{_at(source)}.formula",
            what=f"is not used by `combine: {objective.combine}`",
            fix="Set combine to formula, or remove the line.",
        )
    centred = source.advantage.use in _UNSCALED
    if objective.combine == "normalize_then_sum" and centred:
        yield Problem(
            where=f"sources.{source.name}.advantage",
            what=f"`{source.advantage.use}` normalises nothing, so `normalize_then_sum` would be a "
            "weighted sum",
            fix="Use `grpo`, or combine by weighted_sum.",
        )


def _check_weights(source: SourceConfig) -> Iterator[Problem]:
    gates = source.objective.gates
    for part in source.rewards:
        at = f"sources.{source.name}.rewards.{part.name}"
        if source.objective.combine == "formula":
            if part.weight != 1.0:
                yield Problem(
                    where=f"{at}.weight",
                    what=f"is {part.weight:g}, and a formula knows no weights",
                    fix=f"Write the factor into the formula: {part.weight:g} * {part.name}.",
                )
            continue
        if part.weight == 0 and any(g.part == part.name for g in gates):
            opens = any(g.needs == part.name for g in gates)
            if not opens:
                yield Problem(
                    where=f"{at}.weight",
                    what="is 0, so the part's gate cannot matter",
                    fix="Remove the gate, or raise the weight.",
                )
        if part.weight == 0 and part.credit is not None and part.credit.to == "tokens":
            yield Problem(
                where=f"{at}.weight",
                what="is 0, so its credit to tokens cannot matter",
                fix="Raise the weight, or remove `credit`.",
            )


def _check_credit(source: SourceConfig) -> Iterator[Problem]:
    for part in source.rewards:
        credit, at = part.credit, f"sources.{source.name}.rewards.{part.name}.credit"
        if credit is None:
            continue
        grader = part.definition
        if not isinstance(grader, FunctionGrader | StepsGrader):
            formula = isinstance(grader, MultiGrader)
            why = "its formula does not say what one step of a part adds to it" if formula else ""
            yield Problem(
                where=at,
                what=f"has nothing to credit: a `{grader.type}` scores no steps"
                + (f" ({why})" if why else ""),
                fix="Make the `steps` grader a part of its own, beside the others."
                if formula
                else "Remove it, or use `steps` or a function that returns spans.",
            )
            continue
        whole = isinstance(grader, StepsGrader) and grader.outcome is not None
        if whole and credit.aggregate is not None:
            yield Problem(
                where=f"{at}.aggregate",
                what="makes the value of the steps alone, so that `outcome` would not count",
                fix="Remove it, or make the outcome a part of its own.",
            )
        if credit.gamma != 1.0 and credit.aggregate != "discounted":
            yield Problem(
                where=f"{at}.gamma",
                what=f"is {credit.gamma:g}, which only `aggregate: discounted` uses",
                fix="Set aggregate to discounted, or remove the line.",
            )
        if credit.to == "tokens" and source.objective.combine == "formula":
            yield Problem(
                where=f"{at}.to",
                what="is `tokens`, but a formula does not say what one step of a part adds to it",
                fix="Set it to rollout, or combine by weighted_sum or normalize_then_sum.",
            )
        if credit.to == "rollout" and credit.aggregate is None:
            yield Problem(
                where=at,
                what="keeps the grader's value and credits the whole rollout, as without it",
                fix="Set aggregate, or remove `credit`.",
            )


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _at(source: SourceConfig) -> str:
    return f"sources.{source.name}.objective"
