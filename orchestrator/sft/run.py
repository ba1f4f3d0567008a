"""Learning from rows, from recipe to checkpoint: check, start the trainer, train, free.

The rows of a step are a function of recipe and step alone, so a checkpoint holds nothing of the
driver's, and a resumed run goes on with the very rows that come next. Signals act as in
`orchestrator.run`.
"""

import asyncio
import logging
from pathlib import Path

import ray
from rich.console import Console

from actors.trainer import RewardTrainerActor, TrainerActor
from configs.sft import LessonRecipe, SftConfig
from configs.validate_sft import warn_sft
from orchestrator.cluster import LessonCluster, start_ray
from orchestrator.loop import Stopped, StopRequest
from orchestrator.records.hashes import Hashed, run_hashes
from orchestrator.records.metrics import MetricSinks
from orchestrator.records.run_dir import RunDir
from orchestrator.run import listen_for_signals
from orchestrator.sft.loop import School
from orchestrator.sft.plan import Prepared, prepare

log = logging.getLogger("braid.sft")


def execute(cfg: LessonRecipe, run_dir: Path, resume: str, *, accept_changes: bool = False) -> int:
    """Train to the end; return the exit code. Arguments and errors are `orchestrator.run`'s."""
    made = prepare(cfg)
    console = Console()
    for warning in warn_sft(cfg, made.run.num_steps):
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    with RunDir.open(
        run_dir, cfg, resume, hashes=_hashes(made), accept_changes=accept_changes
    ) as directory:
        return asyncio.run(_run(made, directory, console))


def _hashes(made: Prepared) -> dict[str, Hashed]:
    """Hash what the run is made of; its rows stand under `data`."""
    content = f"{made.training.content}/{made.held_out.content}"
    found = run_hashes(made.run, {"rows": content[:16]})
    found["data"] = Hashed(hash=found.pop("sources.rows.data").hash, of="the rows' content")
    return found


async def _run(made: Prepared, directory: RunDir, console: Console) -> int:
    stop = StopRequest()

    def say(text: str) -> None:
        log.info("%s", text)
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    try:
        ending = "ending with a checkpoint; once more ends at once"
        with (
            listen_for_signals(stop, lambda: say(f"{stop.name}: {ending}")) as listen,
            MetricSinks(made.run, directory) as sinks,
        ):
            say(
                f"{made.cfg.name}: {len(made.training)} rows, {made.run.num_steps} steps; run "
                f"directory {directory.path}"
            )
            await stop.or_else(start_ray(made.run))
            listen()  # Ray has put a handler of its own in place of ours, which aborts
            lessons = (made.cfg.model, made.cfg.data.too_long)
            trainer = TrainerActor if isinstance(made.cfg, SftConfig) else RewardTrainerActor
            cluster = await stop.or_else(LessonCluster.start(made.run, trainer, lessons))
            try:
                school = School(
                    made,
                    lessons=cluster.lessons,
                    trainer=cluster.trainer,
                    directory=directory,
                    sinks=sinks,
                    say=say,
                )
                await school.train(stop)
            finally:
                await cluster.close()
    except (Stopped, asyncio.CancelledError) as error:
        how = "" if isinstance(error, Stopped) else " at once"
        say(f"stopped{how} by {stop.name}; --resume auto goes on from here")
        return 128 + stop.signal_number
    finally:
        ray.shutdown()
    return 0
