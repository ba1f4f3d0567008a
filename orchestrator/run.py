"""One run from recipe to table: check, open the run directory, start the cluster, train, free.

Signals: the first SIGINT or SIGTERM abandons the step that is being sampled, or lets the one that
is being trained end, commits a checkpoint and frees every actor (exit 130 or 143); the second
one frees the actors at once, and the run resumes from its newest checkpoint.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from actors.judge import EngineTransport
from configs.errors import ConfigError, Problem
from configs.judges import JudgeConfig
from configs.schema import RunConfig
from configs.validate import validate_run
from configs.versions import check_versions
from environments.registry import validate_environments
from mixing.difficulty.feedback import open_pools
from mixing.ledger.ledger import Ledger
from mixing.mixer import Mixer
from mixing.quota.edits import EditLog
from mixing.sources.decontaminate import NOT_SEARCHED, Contamination, decontaminate
from mixing.sources.opening import open_sources
from mixing.sources.search_cache import find_once
from mixing.sources.source import Source
from orchestrator.calibration import check_calibrations
from orchestrator.clock import PhaseClock
from orchestrator.cluster import Cluster, start_ray
from orchestrator.loop import Parts, Stopped, StopRequest, train
from orchestrator.planning.data import check_graded_rows
from orchestrator.planning.loss_check import check_loss
from orchestrator.planning.mix import plan_mix
from orchestrator.publisher import WeightPublisher
from orchestrator.records.hashes import run_hashes
from orchestrator.records.recorder import Recorder
from orchestrator.records.run_dir import RunDir
from orchestrator.resume.state import Checkpointer, load_actors
from orchestrator.sandboxing import describe, find_tier, validate_sandbox
from rewards.graders import validate_rewards
from rewards.judges.request import Transport
from rewards.objective import validate_objectives
from rollouts.advantages import validate_advantages

log = logging.getLogger("braid.run")


def check(cfg: RunConfig) -> tuple[Mapping[str, Source], Contamination]:
    """Return the sources, opened and decontaminated, and what was found in them.

    Raises:
        ConfigError: every problem found; nothing was started.
    """
    problems: list[Problem] = validate_run(cfg)
    sources: Mapping[str, Source] = {}
    found = NOT_SEARCHED
    try:
        sources, found = decontaminate(cfg, open_sources(cfg), find_once)
        open_pools(cfg, sources)
    except ConfigError as error:
        problems += error.problems
    problems += plan_mix(cfg, {name: source.size for name, source in sources.items()}).problems
    for validate in (
        validate_environments,
        validate_rewards,
        validate_objectives,
        validate_advantages,
    ):
        problems += validate(cfg.sources)
    problems += check_loss(cfg)
    problems += validate_sandbox(cfg)
    if sources and not problems:
        problems += check_graded_rows(cfg, sources)
    if problems:
        # Two checks may find the same fault (a missing file); the first one's words stand.
        raise ConfigError(list({p.where: p for p in reversed(problems)}.values())[::-1])
    return sources, found


def execute(cfg: RunConfig, run_dir: Path, resume: str, *, accept_changes: bool = False) -> int:
    """Run a recipe to its end; return the exit code.

    Args:
        resume: `auto` continues from the newest complete checkpoint, `never` wants a new run.
        accept_changes: resume although data, code or model are not those of the last attempt.

    Raises:
        ConfigError: bad input; nothing was started, or everything is freed again.
        RunError: the run failed; the cause is named, and everything is freed again.
        LedgerError: so did the account of what was trained on.
    """
    sources, found = check(cfg)
    hashes = run_hashes(cfg, {name: source.fingerprint for name, source in sources.items()})
    tier = find_tier(cfg)
    with RunDir.open(
        run_dir,
        cfg,
        resume,
        hashes=hashes,
        accept_changes=accept_changes,
        sandbox="" if tier is None else str(tier),
    ) as directory:
        directory.record_contamination(found)
        return asyncio.run(_run(cfg, directory, sources, found))


async def _run(
    cfg: RunConfig, directory: RunDir, sources: Mapping[str, Source], found: Contamination
) -> int:
    stop = StopRequest()
    recorder = Recorder(cfg, directory)
    mixer = Mixer(cfg, sources, edits=EditLog(directory.mix_edits))
    checkpoints = Checkpointer(cfg, directory)
    restored = checkpoints.newest(mixer)
    directory.truncate_after(restored.step)
    ledger = Ledger.open(
        directory.ledger,
        attempt=directory.attempt,
        step=restored.step,
        offset=restored.ledger_offset,
        pending=restored.pending,
    )
    try:
        signals = listen_for_signals(stop, lambda: _ending(recorder, stop))
        with ledger, recorder, signals as listen:
            recorder.say(_opening(cfg, directory, restored.step))
            for warning in (*check_versions(), *found.problems(cfg.decontaminate)):
                recorder.say(f"warning: {warning}")
            if (tier := find_tier(cfg)) is not None:
                recorder.say(describe(tier))
            for change in directory.accepted:
                recorder.say(f"warning: accepted by --accept-changes: {change}")
            await stop.or_else(_check_endpoints(cfg, directory, recorder))
            recorder.state("starting Ray")
            await stop.or_else(start_ray(cfg))
            listen()  # Ray has put a handler of its own in place of ours, which aborts
            recorder.state("starting engines, trainer and graders")
            cluster = await stop.or_else(Cluster.start(cfg))
            try:
                await stop.or_else(_check_engines(cfg, cluster, directory, recorder))
                parts = _parts(cfg, cluster, mixer, ledger, recorder, checkpoints, stop)
                if restored.checkpoint is not None:
                    await load_actors(cfg, restored.checkpoint, cluster)
                await train(parts, restored)
                recorder.finished()
            finally:
                await cluster.close()
    except (Stopped, asyncio.CancelledError) as error:
        how = "" if isinstance(error, Stopped) else " at once"
        recorder.say(f"stopped{how} by {stop.name}; --resume auto goes on from here")
        return 128 + stop.signal_number
    finally:
        ray.shutdown()
    return 0


async def _check_endpoints(cfg: RunConfig, directory: RunDir, recorder: Recorder) -> None:
    """Hold judges behind endpoints against people, before any actor is started."""

    def no_engines(name: str, judge: JudgeConfig) -> Transport:
        raise AssertionError(f"{name} has an endpoint")

    names = [name for name, judge in cfg.judges.items() if judge.endpoint is not None]
    for line in await check_calibrations(cfg, names, no_engines, directory.calibrations):
        recorder.say(line)


async def _check_engines(
    cfg: RunConfig, cluster: Cluster, directory: RunDir, recorder: Recorder
) -> None:
    """Hold judges on engines of our own against people, before the first step."""

    def engines(name: str, judge: JudgeConfig) -> Transport:
        assert judge.engines is not None
        return EngineTransport(judge.engines, cluster.judges[name])

    for line in await check_calibrations(cfg, cluster.judges, engines, directory.calibrations):
        recorder.say(line)


def _opening(cfg: RunConfig, directory: RunDir, step: int) -> str:
    names = ", ".join(s.name for s in cfg.sources)
    how = f"resuming after step {step}" if step else "starting"
    return f"{cfg.name}: {how}, {cfg.num_steps} steps on {names}; run directory {directory.path}"


def _parts(
    cfg: RunConfig,
    cluster: Cluster,
    mixer: Mixer,
    ledger: Ledger,
    recorder: Recorder,
    checkpoints: Checkpointer,
    stop: StopRequest,
) -> Parts:
    clock = PhaseClock()
    publisher = WeightPublisher(
        cfg,
        supervisor=cluster.supervisor,
        rendezvous=cluster.rendezvous,
        trainer=cluster.trainer,
        rollout=cluster.rollout,
        clock=clock,
        probe_tasks=[mixer.held_out(s.name)[0] for s in cfg.sources],
    )
    return Parts(
        cfg=cfg,
        cluster=cluster,
        mixer=mixer,
        ledger=ledger,
        publisher=publisher,
        recorder=recorder,
        checkpoints=checkpoints,
        clock=clock,
        stop=stop,
    )


def _ending(recorder: Recorder, stop: StopRequest) -> None:
    recorder.say(f"{stop.name}: ending with a checkpoint; once more ends at once")


@contextmanager
def listen_for_signals(stop: StopRequest, tell: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Route SIGINT and SIGTERM: the first asks, the second cancels. Yields what installs it
    again.

    Args:
        tell: says to the user what the first one does.
    """
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def received(number: int) -> None:
        if stop.event.is_set():
            main.cancel()
        else:
            stop.signal_number = number
            stop.event.set()
            tell()

    def listen() -> None:
        for number in before:
            loop.add_signal_handler(number, received, number)

    listen()
    try:
        yield listen
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            # Trackers are yet to be closed, and Ray to be shut down.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
