"""Weights & Biases: a section of panels a source, tables of rollouts, alarms as alerts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.redact import redact_data
from configs.schema import RunConfig, dump
from orchestrator.sinks.sink import Row, Sink, by_section
from rewards.monitors.alarms import Alarm

_COLUMNS = ("step", "source", "group", "prompt", "completion", "reward", "parts", "status", "gold")
_LONGEST = 4000
"""Characters of a text in a table."""


class WandbSink(Sink):
    """One W&B run, over all attempts. `step` is the axis, so that a step may be logged again."""

    def __init__(self, cfg: RunConfig, folder: Path, run_id: str):
        import wandb

        self._run = wandb.init(
            project=cfg.logging.wandb_project,
            name=cfg.name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            mode="offline" if cfg.logging.wandb == "offline" else "online",
            config=redact_data(dump(cfg)),
            tags=[s.name for s in cfg.sources],
            # Neither code, the command line nor the git remote leaves here: they may hold secrets.
            settings=wandb.Settings(
                init_timeout=30,
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_meta=True,
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        for source in cfg.sources:
            name = by_section(f"eval/{source.name}/pass_rate").replace(".", "\\.")
            self._run.define_metric(name, step_metric="step", summary="max")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one step."""
        self._run.log({**{by_section(k): v for k, v in metrics.items()}, "step": step})

    def samples(self, rows: Sequence[Row], step: int) -> None:
        """Log a table of rollouts for each source."""
        import wandb

        tables: dict[str, wandb.Table] = {}
        for row in rows:
            key = f"source-{row['source']}/rollouts"
            table = tables.setdefault(key, wandb.Table(columns=list(_COLUMNS)))
            table.add_data(*_cells(row))
        self._run.log({**tables, "step": step})

    def alarm(self, alarm: Alarm) -> None:
        """Raise an alert, which W&B mails or posts as its user wishes."""
        from wandb.sdk.wandb_alerts import AlertLevel

        raised = alarm.event == "raised"
        self._run.alert(
            title=f"{alarm.monitor}: {alarm.source or 'the run'} ({alarm.event})",
            text=str(alarm),
            level=AlertLevel.WARN if raised else AlertLevel.INFO,
            wait_duration=0,
        )

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _cells(row: Row) -> list[str | float | int | None]:
    prompt, completions = row["prompt"], row["completions"]
    assert isinstance(prompt, list) and isinstance(completions, list)
    asked = [f"{m['role']}: {m['content']}" for m in prompt if isinstance(m, dict)]
    reward, gold = row["reward"], row.get("gold")
    parts = row["reward_parts"]
    return [
        int(str(row["step"])),
        str(row["source"]),
        str(row["group_id"]),
        "\n".join(asked)[:_LONGEST],
        "\n---\n".join(map(str, completions))[:_LONGEST],
        None if reward is None else float(str(reward)),
        ", ".join(f"{k}={v}" for k, v in parts.items()) if isinstance(parts, dict) else "",
        str(row["status"]),
        None if gold is None else float(str(gold)),
    ]
