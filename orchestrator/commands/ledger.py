"""What a run's ledger says: the account of each source, and the life of one item."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

from configs.errors import ConfigError, Problem
from configs.load import load_recipe
from configs.schema import RunConfig
from mixing.ledger.account import Account, SourceAccount, Tally, shares
from mixing.ledger.events import (
    Accepted,
    Attempt,
    Dispatched,
    Event,
    Moved,
    Rejected,
    Score,
    Trained,
    from_row,
)
from mixing.ledger.ledger import Row, read_account, rows
from mixing.quota.allocator import Allocator
from mixing.slates.group_ids import parse_group_id
from orchestrator.records.run_dir import read_last_metrics

_UNITS = ("groups", "samples", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much, and which share of all sources' amount that is."""

    groups: int
    samples: int
    tokens: int
    share: dict[str, float]
    """By unit: groups, samples, tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """One source's account. Tokens are sampled ones where dispatched, else loss tokens."""

    target_share: float
    """That it was due over the trained steps, in `unit`; before the first, by the recipe."""
    dispatched: Amount
    accepted: Amount
    trained: Amount
    rejected: dict[str, int]
    """Groups by reason."""
    moved: dict[str, int]
    """Moves to a later step, by reason."""
    rolled_back: int
    """Groups trained on that a rollback took out of the weights again."""
    in_flight: int
    survival: float | None
    """Accepted groups among those that were accepted, or not for what is in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """The account of a run, as far as its ledger goes."""

    run: str
    attempts: int
    step: int
    """Last trained step."""
    balanced: bool
    lost: list[str]
    """Groups that are neither trained nor rejected although their step was trained."""
    trained_twice: list[str]
    faults: list[str]
    """Everything wrong, in words."""
    in_flight: int
    unit: str
    """In which the target shares are: `mix.unit`."""
    sources: dict[str, SourceReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One event in the life of an item."""

    time: str
    """UTC, ISO 8601."""
    event: str
    group: str
    epoch: int
    attempt: int
    """At the task, from 0."""
    run_attempt: int
    undone: bool
    """Whether the run went on from a checkpoint before this, so that it counts no more."""
    step: int | None = None
    version: int | None = None
    """Dispatched: that the engines held; trained: of the weights after the step."""
    before: int | None = None
    """Moved: the step that it was destined for."""
    reason: str | None = None
    why: str | None = None
    samples: int | None = None
    loss_tokens: int | None = None
    score: Score | None = None


def read_report(run: Path, source: str | None = None) -> LedgerReport:
    """Return the account of a run that goes on, ended, or was killed.

    Args:
        source: report this one alone; shares stay those among all.

    Raises:
        ConfigError: no such run, no ledger in it, or no such source.
    """
    cfg, path = _find(run, source)
    account = read_account(path)
    return LedgerReport(
        run=str(run),
        attempts=account.attempt,
        step=account.step,
        balanced=account.balanced,
        lost=account.lost,
        trained_twice=account.trained_twice,
        faults=account.faults(),
        in_flight=len(account.open),
        unit=cfg.mix.unit,
        sources={
            name: report
            for name, report in _sources(account, _targets(run, cfg)).items()
            if source is None or name == source
        },
    )


def read_life(run: Path, item: str, source: str | None = None) -> tuple[Moment, ...]:
    """Return all that happened to an item, over its epochs and attempts, in order.

    Args:
        item: a task id, a group id, or the last part of a task id.

    Raises:
        ConfigError: no such run, no ledger in it, or no such source.
    """
    _, path = _find(run, source)
    matches = _matcher(item, source)
    inside = json.dumps(item, ensure_ascii=False)[1:-1].encode()
    attempt, life = 0, list[Moment]()
    for row in rows(path):
        if inside not in row.text and not row.text.startswith(b'{"event":"attempt"'):
            continue
        event = _parse(row)
        if isinstance(event, Attempt):
            attempt = event.attempt
        elif event is not None:
            life.extend(_moments(event, matches, attempt, row.undone))
    return tuple(life)


def to_json(found: LedgerReport | tuple[Moment, ...]) -> str:
    """Return a report or a life as JSON; what a moment does not have is left out."""
    if isinstance(found, LedgerReport):
        return json.dumps(asdict(found), indent=2, ensure_ascii=False)
    adapter = TypeAdapter(tuple[Moment, ...])
    return adapter.dump_json(found, indent=2, exclude_none=True).decode()


def _find(run: Path, source: str | None) -> tuple[RunConfig, Path]:
    if not (run / "config.yaml").is_file():
        raise ConfigError(
            Problem(where=str(run), what="is no run directory: it has no config.yaml")
        )
    path = run / "ledger.jsonl"
    if not path.is_file():
        raise ConfigError(Problem(where=str(run), what="has no ledger.jsonl yet"))
    cfg = load_recipe(run / "config.yaml")
    names = [s.name for s in cfg.sources]
    if source is not None and source not in names:
        raise ConfigError(
            Problem(
                where=f"--source {source}",
                what="the run has no such source",
                fix=f"Give one of {', '.join(names)}.",
            )
        )
    return cfg, path


def _targets(run: Path, cfg: RunConfig) -> dict[str, float]:
    """Return the share that each source was due so far: stages, limits and live edits move it."""
    last = read_last_metrics(run)
    if last is None:
        sizes = dict.fromkeys((s.name for s in cfg.sources), None)
        return dict(Allocator(cfg, sizes).declared(0).shares)
    key = "source/{}/total/share/target"
    return {s.name: float(str(last.get(key.format(s.name), 0.0))) for s in cfg.sources}


def _sources(account: Account, targets: Mapping[str, float]) -> dict[str, SourceReport]:
    """Return a report of each source of the recipe, and of those the ledger has besides."""
    names = list(dict.fromkeys([*targets, *account.sources]))
    accounts = {name: account.sources.get(name, SourceAccount()) for name in names}
    dispatched = _amounts({name: a.dispatched for name, a in accounts.items()})
    accepted = _amounts({name: a.accepted for name, a in accounts.items()})
    trained = _amounts({name: a.trained for name, a in accounts.items()})
    return {
        name: SourceReport(
            target_share=targets.get(name, 0.0),
            dispatched=dispatched[name],
            accepted=accepted[name],
            trained=trained[name],
            rejected=dict(accounts[name].rejected),
            moved=dict(accounts[name].moved),
            rolled_back=accounts[name].rolled_back.groups,
            in_flight=accounts[name].in_flight,
            survival=accounts[name].survival,
        )
        for name in names
    }


def _amounts(tallies: Mapping[str, Tally]) -> dict[str, Amount]:
    parts = {unit: shares({n: getattr(t, unit) for n, t in tallies.items()}) for unit in _UNITS}
    return {
        name: Amount(
            groups=tally.groups,
            samples=tally.samples,
            tokens=tally.tokens,
            share={unit: parts[unit][name] for unit in _UNITS},
        )
        for name, tally in tallies.items()
    }


def _matcher(item: str, source: str | None) -> Callable[[str], bool]:
    """Return whether a group id is of the item asked for."""

    def matches(group_id: str) -> bool:
        task_id, _, _ = parse_group_id(group_id)
        named = item in (task_id, group_id) or task_id.endswith(f"/{item}")
        return named and (source is None or task_id.startswith(f"{source}/"))

    return matches


def _parse(row: Row) -> Event | None:
    """Return the event, or None for a damaged row, which the account reports."""
    try:
        return from_row(row.text)
    except ValueError:
        return None


def _moments(
    event: Event, matches: Callable[[str], bool], run_attempt: int, undone: bool
) -> Iterator[Moment]:
    """Yield what an event means for the groups that match."""

    def moment(group_id: str) -> Moment:
        _, epoch, attempt = parse_group_id(group_id)
        return Moment(
            time=datetime.fromtimestamp(event.time, UTC).isoformat(timespec="seconds"),
            event=event.event,
            group=group_id,
            epoch=epoch,
            attempt=attempt,
            run_attempt=run_attempt,
            undone=undone,
        )

    match event:
        case Dispatched():
            for group in event.groups:
                if matches(group.group_id):
                    found = moment(group.group_id)
                    yield replace(found, step=event.step, version=event.version)
        case Moved() if matches(event.group):
            found = moment(event.group)
            yield replace(found, step=event.step, before=event.before, reason=event.reason)
        case Accepted() if matches(event.group):
            yield replace(moment(event.group), score=event.score)
        case Rejected() if matches(event.group):
            found = moment(event.group)
            yield replace(found, reason=event.reason, why=event.why, score=event.score)
        case Trained():
            for group in event.groups:
                if matches(group.group_id):
                    yield replace(
                        moment(group.group_id),
                        step=event.step,
                        version=event.version,
                        samples=group.samples,
                        loss_tokens=group.loss_tokens,
                    )
        case _:
            return
