"""A run saves itself: with which facts, what is said of it, and what follows where that fails. All functions
are collectives."""

from typing import Any

from pipeline.engine.exchange import on_host
from pipeline.errors import CheckpointError
from pipeline.train import checkpoint
from pipeline.train.collective import average_buffers
from pipeline.train.reporting import Reporter
from pipeline.train.run import Run


def save(run: Run, reporter: Reporter, *, last: bool = False) -> None:
    """Saves the run. last: waits until that is done; else training goes on meanwhile. A save that fails is
    made again, with the state of now; where that fails too, CheckpointError is raised on all ranks."""
    failed = settle(run, reporter, wait=True)
    _start(run)
    if not last and failed is None:
        return
    again = settle(run, reporter, wait=True)
    if again is not None and failed is None:
        _start(run)
        again = settle(run, reporter, wait=True)
    if again is not None:
        raise again


def save_what_is_new(run: Run, reporter: Reporter) -> None:
    """Saves the steps since the last save, if any, and waits until all is saved."""
    failed = settle(run, reporter, wait=True)
    if failed is not None or run.progress.step > run.saver.saved.step:
        save(run, reporter, last=True)


def _start(run: Run) -> None:
    main, beside = run.engine.rank == 0, {}
    run.progress.nonfinite = int(run.nonfinite[0])
    facts = _facts(run) if main else {}
    run.faults.before_save(run)
    run.meeting.save_asked = False
    run.save_times.begun()
    with run.meeting.alone("saves a checkpoint"):
        if run.progress.step == run.saver.saved.step:
            run.saver.restate(run.progress, facts)
            return
        average_buffers(run.engine, run.engine.module)
        if run.ema is not None and main:
            beside = on_host({f"ema.{name}": tensor for name, tensor in run.ema.averages()})
        if main:
            known = run.procedure.state().items()
            beside |= on_host({f"samples.{name}": tensor for name, tensor in known})
        ended = run.progress.step == run.total_steps
        moments = run.config.train.save_optimizer_at_end or not ended
        run.saver.start(run.engine, run.progress, beside, facts, moments=moments)


def settle(run: Run, reporter: Reporter, *, wait: bool) -> CheckpointError | None:
    """Says what was saved since. Returns what went wrong, on all ranks, which is said too."""
    saver, progress = run.saver, run.progress
    try:
        with run.meeting.alone("waits for a checkpoint to be written"):
            folder = saver.settle(wait=wait)
    except CheckpointError as err:
        reporter.say(str(err))
        # the best weights are not on the disk; those before are
        if progress.best_step is not None and progress.best_step > saver.saved.step:
            progress.best, progress.best_step = saver.saved.best, saver.saved.best_step
        return err
    if folder is not None:
        reporter.say(f"saved {folder}")
    return None


def _facts(run: Run) -> dict[str, Any]:
    """Everything in a checkpoint that is not a tensor. It is the same on every rank; rank 0 writes it."""
    return checkpoint.run_facts(run.config, run.engine.world_size) | {
        "global_batch": run.resolved.global_batch,
        "classes": run.classes,
        "origins": list(run.origins),
        "streams": {name: stream.state_dict() for name, stream in run.streams.items()},
    }
