"""A RunPlan as tables for people."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.errors import Problem
from orchestrator.planning.data import DataPlan
from orchestrator.planning.memory import MemoryEstimate
from orchestrator.planning.plan import Bundle, RunPlan
from orchestrator.planning.source import DifficultyPlan


def render_plan(plan: RunPlan) -> RenderableType:
    """Return the whole plan, one screen for a usual recipe."""
    return Group(
        Text(f"{plan.name}: {plan.num_steps} steps", style="bold"),
        *_model_lines(plan),
        _groups(plan),
        _bundles(plan),
        _sources(plan),
        _data(plan),
        *_stages(plan),
        *_difficulty(plan),
        _evaluation(plan),
        *(Text(line) for line in _batch_lines(plan)),
        _memory(plan),
        *_notes(plan),
        *_problems("problem", "red", plan.problems),
        *_problems("warning", "yellow", plan.warnings),
        Text(""),
        _verdict(plan),
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1)
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _model_lines(plan: RunPlan) -> Iterator[Text]:
    shape = plan.model
    if shape is None:
        yield Text("model: not on this machine; parameter count unknown")
        return
    count = f"{shape.params:,} parameters" if shape.params else "parameter count unknown"
    yield Text(
        f"model: {shape.architecture}, {count} ({shape.counted_from}), {shape.layers} layers of "
        f"{shape.hidden}, vocabulary {shape.vocab:,}{', tied head' if shape.tied else ''}"
    )


def _groups(plan: RunPlan) -> Table:
    table = _table("groups", "role", "actors", "ranks", "cpus each", "gpus each", "shares with")
    for g in plan.groups:
        shares = g.shares_with or "-"
        table.add_row(g.role, str(g.actors), str(g.ranks), f"{g.cpus:g}", f"{g.gpus:g}", shares)
    table.add_section()
    t = plan.totals
    table.add_row("total", str(t.actors), "", f"{t.cpus:g}", f"{t.gpus:g}", "")
    return table


def _bundles(plan: RunPlan) -> Table:
    table = _table("bundles", "actors", "bundles", "cpus each", "gpus each", "labels")
    for first, last, like in _alike(plan.bundles):
        count = last.index - first.index + 1
        span = first.members[0].index, last.members[0].index
        index = f"[{span[0]}]" if span[0] == span[1] else f"[{span[0]}..{span[1]}]"
        labels = ", ".join(f"{k}={v}" for k, v in like.labels.items()) or "-"
        names = " + ".join(m.role for m in like.members) + f" {index}"
        table.add_row(names, str(count), f"{like.cpus:g}", f"{like.gpus:g}", labels)
    return table


def _alike(bundles: tuple[Bundle, ...]) -> Iterator[tuple[Bundle, Bundle, Bundle]]:
    """Yield runs of bundles that differ in index alone: first, last, and one of them."""

    def kind(b: Bundle) -> object:
        return [m.role for m in b.members], b.cpus, b.gpus, dict(b.labels)

    start = 0
    for i in range(1, len(bundles) + 1):
        if i == len(bundles) or kind(bundles[i]) != kind(bundles[start]):
            yield bundles[start], bundles[i - 1], bundles[start]
            start = i


def _sources(plan: RunPlan) -> Table:
    columns = ["name", "share", "groups/step", "samples/step", "groups in run", "epochs"]
    unlike = len({s.max_staleness for s in plan.sources}) > 1
    table = _table("sources", *columns, *(["steps ahead"] if unlike else []))
    for s in plan.sources:
        table.add_row(
            s.name,
            f"{s.share:.1%}",
            _range(s.groups_least, s.groups_most, s.groups_per_step),
            f"{s.samples_per_step:g}",
            f"{s.groups_in_run:g}",
            "-" if s.epochs is None else f"{s.epochs:g}",
            *([f"up to {s.max_staleness}"] if unlike else []),
        )
    return table


def _data(plan: RunPlan) -> Table:
    table = _table(
        "data", "name", "items", "held out", "epochs in run", "longest prompt", "and completion"
    )
    epochs = {s.name: s.epochs for s in plan.sources}
    for d in plan.data:
        passes = epochs.get(d.name)
        table.add_row(
            d.name,
            _count(d.items),
            _count(d.held_out),
            "-" if passes is None else f"{passes:g}",
            *_longest(d),
        )
    return table


def _longest(d: DataPlan) -> tuple[str, str]:
    if d.longest_chars is None or d.longest_tokens is None:
        return "-", "-"
    about = "" if d.tokens_counted else "~"
    both = d.longest_tokens + d.max_tokens
    return (
        f"{d.longest_chars:,} chars, {about}{d.longest_tokens:,} tokens",
        f"{about}{both:,} of {d.max_model_len:,}",
    )


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _stages(plan: RunPlan) -> Iterator[Table]:
    """Yield a table where the recipe has stages, or limits that will be used up."""
    shares = [(stage, s) for stage in plan.stages for s in stage.sources]
    if len(plan.stages) < 2 and all(s.steps_to_exhaustion is None for _, s in shares):
        return
    columns = ("stage", "until", "source", "share", "groups/step", "group", "limits last, steps")
    table = _table("stages", *columns)
    for at, (stage, s) in enumerate(shares):
        first = at == 0 or shares[at - 1][0] is not stage
        table.add_row(
            str(stage.index) if first else "",
            stage.until if first else "",
            s.source,
            f"{s.share:.1%}",
            f"{s.groups_per_step:g}",
            str(s.group_size),
            "-" if s.steps_to_exhaustion is None else str(s.steps_to_exhaustion),
        )
    yield table


def _difficulty(plan: RunPlan) -> Iterator[Table]:
    """Yield a table where some source's items, levels or groups are judged."""
    if not plan.difficulty:
        return
    columns = ("name", "window", "right", "retired", "parked", "live", "spares")
    table = _table("difficulty", *columns)
    for d in plan.difficulty:
        table.add_row(
            d.name,
            "-" if d.window is None else f"{d.window[0]:g}-{d.window[1]:g}",
            "-" if d.passes is None else f"{_span(*d.passes)}/{d.group_size}",
            _visits(d.retire_after, d.retire_retry),
            _visits(d.park_after, d.park_retry),
            _live(d),
            "-" if d.max_resamples is None else str(d.max_resamples),
        )
    yield table


def _live(d: DifficultyPlan) -> str:
    if d.levels is not None:
        return f"level {_span(*d.levels)}"
    return "-" if d.min_live is None else f">={d.min_live:,}"


def _span(first: int, last: int | None) -> str:
    return str(first) if first == last else f"{first}-{'top' if last is None else last}"


def _visits(after: int | None, retry: int | None) -> str:
    """Visits to the bench and steps to the next try; a dash for never."""
    return "/".join(str(number) if number else "-" for number in (after, retry)) if after else "-"


def _evaluation(plan: RunPlan) -> Table:
    columns = ("name", "prompts", "samples", "every", "times", "completions", "tokens at most")
    table = _table("evaluation", *columns)
    for e in plan.evaluation:
        table.add_row(
            e.name,
            f"{e.prompts:,}",
            str(e.samples),
            str(e.every) if e.every else "-",
            str(e.times),
            f"{e.completions:,}",
            f"{e.completion_tokens_at_most:,}",
        )
    if len(plan.evaluation) > 1:
        table.add_section()
        completions = sum(e.completions for e in plan.evaluation)
        tokens = sum(e.completion_tokens_at_most for e in plan.evaluation)
        table.add_row("total", "", "", "", "", f"{completions:,}", f"{tokens:,}")
    return table


def _range(least: int, most: int, mean: float) -> str:
    return f"{mean:g}" if least == most else f"{mean:g} ({least} to {most})"


def _batch_lines(plan: RunPlan) -> Iterator[str]:
    b = plan.batch
    yield (
        f"batch: {b.groups_per_step} groups, up to {b.samples_per_step} samples, "
        f"{b.completion_tokens_at_most:,} completion tokens, {b.tokens_at_most:,} tokens in all"
    )
    yield (
        f"       {b.optimizer_steps} optimizer step(s), up to {b.micro_batches_at_most} "
        "micro-batches a rank"
    )
    yield (
        f"       up to {b.groups_in_flight} groups, {b.sequences_in_flight} sequences in flight "
        f"over {b.engine_slots} engine slots"
    )
    yield ""


def _memory(plan: RunPlan) -> Table:
    table = _table("memory of one actor, GiB", "role", "on", "total", "of which")
    table.columns[3].justify = "left"
    for m in plan.memory:
        total = "unknown" if m.total_gib is None else f"{m.total_gib:.2f}"
        parts = ", ".join(f"{p.name} {p.gib:.2f}" for p in m.parts)
        table.add_row(m.role, m.device, total, "; ".join(x for x in (parts, _extra(m)) if x))
    if plan.fullest_gpu_gib is not None:
        table.add_section()
        table.add_row("fullest GPU", "gpu", f"{plan.fullest_gpu_gib:.2f}", "")
    return table


def _notes(plan: RunPlan) -> Iterator[Text]:
    if plan.model is None:
        yield Text("  unknown until the model's files are on this machine", style="dim")
        return
    for m in plan.memory:
        if m.note:
            yield Text(f"  {m.role}: {m.note}", style="dim")


def _extra(m: MemoryEstimate) -> str:
    parts: list[str] = []
    if m.kv is not None:
        parts.append(f"KV {m.kv.bytes_per_token:,} B a token")
        if m.kv.tokens is not None:
            parts.append(
                f"{m.kv.tokens:,} tokens in {m.kv.blocks:,} blocks, "
                f"{m.kv.full_length_sequences:g} sequences of full length"
            )
    if m.host_gib is not None:
        parts.append(f"host {m.host_gib:.2f}")
    return ", ".join(parts)


def _problems(kind: str, colour: str, problems: tuple[Problem, ...]) -> Iterator[Text]:
    for problem in problems:
        yield Text(f"{kind}: {problem}", style=colour)


def _verdict(plan: RunPlan) -> Text:
    if not plan.problems:
        return Text("ready to run", style="green")
    return Text(f"{len(plan.problems)} problem(s): this recipe does not run", style="red")
