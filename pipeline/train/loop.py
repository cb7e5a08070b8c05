"""The training loop. It knows no task, no policy and no launcher. Between two reports the host does not wait
for the device."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from pipeline.config.schema import RunConfig
from pipeline.data.one_pool import batches_of_all
from pipeline.engine import launched
from pipeline.engine.connect import ALONE, limit_collectives, shared_notes
from pipeline.engine.launched import lost_another
from pipeline.errors import PipelineError, SampleError, StopAsked, StorageError, counted
from pipeline.interfaces import Batch
from pipeline.modes import set_modes
from pipeline.train import checkpoint
from pipeline.train.budget import bad_summary, check_budget, count_bad
from pipeline.train.collective import anywhere, average_buffers
from pipeline.train.compiling import compiling_is_work
from pipeline.train.evaluate import evaluate, missing_samples, ranking_score
from pipeline.train.faults.injection import Injection
from pipeline.train.kind_norms import GRADIENT_NORMS
from pipeline.train.meeting import Meeting
from pipeline.train.metrics import MetricSums, mean
from pipeline.train.mixing import tasks_of_step
from pipeline.train.notes import SharedNotes
from pipeline.train.pictures import draw_pictures
from pipeline.train.rates import reported_rates
from pipeline.train.reporting import Reporter, Stopwatch
from pipeline.train.run import Run
from pipeline.train.saves import save, save_what_is_new, settle
from pipeline.train.setup import build_run, write_config
from pipeline.train.signals import StopRequest
from pipeline.train.starts import note_start
from pipeline.train.trackers import Trackers, tracked
from pipeline.train.train_step import train_step
from pipeline.train.watchdog import Section, Watchdog


def train(config: RunConfig, resume: str = "auto", faults: Injection | None = None) -> Path:
    """Trains until the last step, or until SIGTERM, SIGUSR1 or SIGINT. Returns the folder of the run. resume:
    see `build_run`. faults: put into the run on purpose. Raises PipelineError."""
    folder, rank, world_size = Path(config.output), launched.rank(), launched.world_size()
    if rank == 0:
        # asked now, as the source may change before a checkpoint is saved
        checkpoint.commit()
    with StopRequest() as stop, Watchdog(folder, rank, world_size) as watchdog:
        if world_size > 1:
            watchdog.at(Section("builds the run", config.engine.start_timeout + ALONE))
        run = build_run(config, resume)
        watchdog.notes = notes = SharedNotes(shared_notes())
        with run.lock, run.saver:
            limit = max(config.engine.start_timeout, config.engine.timeout)
            run.meeting = Meeting(run.engine, stop, watchdog, limit)
            if rank == 0:
                run.meeting.wants_save = run.save_times.waited
            run.faults = faults or Injection()
            # from here on all ranks hear a request to stop: none has begun before
            anywhere(run.engine, False)
            stop.begin(notes)
            try:
                with compiling_is_work(run.meeting) if config.engine.compile != "none" else nullcontext():
                    _train(run)
            except RuntimeError as err:
                if lost := lost_another(err):
                    watchdog.report(lost)
                raise
            finally:
                watchdog.at(Section("waits for its last checkpoint", ALONE))
    return folder


def _train(run: Run) -> None:
    write_config(run)
    note_start(run)
    run.faults.prepare(run)
    folder, main = Path(run.config.output), run.engine.rank == 0
    trackers, units, step = _trackers(run), _units(run), run.progress.step
    with Reporter(
        folder, main=main, step=step, total_steps=run.total_steps, trackers=trackers, units=units
    ) as reporter:
        for line in run.about:
            reporter.say(line)
        for source in (*run.streams.values(), *run.loaders.values()):
            source.stopping = run.meeting.stopping
        for stream in run.streams.values():
            stream.device = run.engine.device
        # kept until the workers are killed: one that hangs would be waited for when its iterator goes
        run.open = _opened(run)
        sums, watch = MetricSums(only_finite=True), Stopwatch()
        try:
            with _saving_if_data_fail(run, reporter):
                _loop(run, reporter, sums, watch)
        except StopAsked:
            _stop(run, reporter)
        finally:
            run.meeting.ends()


def _opened(run: Run) -> dict[str, Iterator[Batch]]:
    """Iterators of the streams, whose workers start with the first batch."""
    if run.config.train.workers is None:
        return {name: iter(stream) for name, stream in run.streams.items()}
    steps = itertools.count(run.progress.step)
    plan = (task for step in steps for task in tasks_of_step(run.resolved, step))
    return batches_of_all(run.streams, plan)


def _trackers(run: Run) -> Trackers | None:
    """Those of the run, on rank 0."""
    log = run.config.log
    if run.engine.rank > 0 or not log.trackers:
        return None
    return Trackers(tracked(run.config, run.progress.step), log.trackers, log.options)


def _units(run: Run) -> dict[str, str]:
    """Units of the scores in the lines of a run, by name."""
    return {
        f"val/{name}/{metric}": unit
        for name in run.config.tasks
        for metric, unit in run.engine.module.tasks[name].metric_units.items()
    }


def _loop(run: Run, reporter: Reporter, sums: MetricSums, watch: Stopwatch) -> None:
    settings = run.config.train
    learning: frozenset[str] | None = None
    _make_up_evaluation(run, reporter)
    while run.progress.step < run.total_steps and not run.out_of_patience:
        if (trains := run.procedure.spec(run.progress.step).trains) != learning:
            set_modes(run.engine.module, trains)
            learning = trains
        plan = tasks_of_step(run.resolved, run.progress.step)
        run.faults.before_step(run)
        norm = train_step(run, plan, run.open, sums, watch)
        _limit_waits(run)
        reporter.advance()
        step, last = run.progress.step, run.progress.step == run.total_steps
        if last or step % settings.log_every == 0:
            if settle(run, reporter, wait=False) is not None:
                save(run, reporter, last=True)
            try:
                _report(run, reporter, sums, watch, norm)
            # raised by every rank alike
            except PipelineError:
                save(run, reporter, last=True)
                raise
        better = not last and _due(step, settings.eval_every) and _score(run, reporter)
        last |= run.out_of_patience
        if last or better or run.meeting.save_asked or run.save_times.due(step):
            save(run, reporter, last=last)
    if run.progress.step < run.total_steps:
        reporter.say(
            f"ends at step {run.progress.step} of {run.total_steps}: train.patience={settings.patience} "
            f"evaluations were no better than step {run.progress.best_step}"
        )
    for line in bad_summary(run.engine, run.streams):
        reporter.say(line)
    # the run is saved by now: if it ends in this evaluation, it is repeated on resumption
    if run.loaders and run.progress.evaluated < run.progress.step:
        _score(run, reporter)
        save(run, reporter, last=True)


def _limit_waits(run: Run) -> None:
    """After the first step of this process, in which connections are made and kernels built, waits are
    shorter."""
    if run.meeting.limit != (limit := run.config.engine.timeout):
        run.meeting.limit = limit
        limit_collectives(limit)


def _make_up_evaluation(run: Run, reporter: Reporter) -> None:
    """The evaluation of the step from which the run goes on, if a request to stop had broken it off."""
    step = run.progress.step
    if (
        0 < step < run.total_steps
        and run.progress.evaluated < step
        and _due(step, run.config.train.eval_every)
    ):
        if _score(run, reporter):
            save(run, reporter)


def _stop(run: Run, reporter: Reporter) -> None:
    """Ends a run that was asked to stop, with a checkpoint of its last step."""
    step, run.saver.hurried = run.progress.step, True
    save_what_is_new(run, reporter)
    for line in bad_summary(run.engine, run.streams):
        reporter.say(line)
    reporter.say(f"stopped as asked after step {step} of {run.total_steps}; --resume auto continues")


@contextmanager
def _saving_if_data_fail(run: Run, reporter: Reporter) -> Iterator[None]:
    """If storage fails, or too many samples in a row are bad, the steps since the last save are saved before
    the run ends. All ranks learn of it at the same point (`Meeting`)."""
    try:
        yield
    except (SampleError, StorageError):
        save_what_is_new(run, reporter)
        raise


def _report(run: Run, reporter: Reporter, sums: MetricSums, watch: Stopwatch, norm: torch.Tensor) -> None:
    """Reads the figures from the device, on every rank, and writes them. Raises PipelineError where too many
    steps in a row were skipped, or too many samples are bad."""
    bad = count_bad(run.engine, run.streams)
    read = sums.reduce(run.engine)
    # of a kind that no step has trained since the last report there is no norm
    values = {name: mean(pair) for name, pair in read.items() if pair[1] or name not in GRADIENT_NORMS}
    values |= reported_rates(run.groups, run.progress.step - 1, run.config, run.total_steps)
    if run.kind_norms is not None or not any(name in read for name in GRADIENT_NORMS):
        values["grad_norm"] = float(norm)
    values |= {"bad_samples": sum(bad.values()), **watch.read()}
    in_row, most = run.nonfinite.tolist()
    run.progress.nonfinite = int(in_row)
    # fewer than usual at the end, and after a resumption between two reports
    if (covered := run.progress.step - run.reported) != run.config.train.log_every:
        values["averaged_steps"] = covered
    run.reported = run.progress.step
    left = watch.elapsed / max(1, covered) * (run.total_steps - run.progress.step)
    values |= {
        f"epoch/{task}": run.progress.samples.get(task, 0) / stream.num_samples
        for task, stream in run.streams.items()
    }
    values |= {"skipped_in_row": most} if most else {}
    reporter.write(run.progress.step, values, seconds_left=left or None)
    if (word := run.data_wait.word(values["data_wait"])) is not None:
        reporter.say(word)
    if most > run.config.train.max_nonfinite:
        raise PipelineError(
            f"{counted(int(most), 'step')} in a row until step {run.progress.step} had a loss or gradient "
            "that is not finite, so nothing was updated; lower optim.lr, give optim.clip_grad or "
            f"engine.precision='fp32', and continue from {run.root} with --resume"
        )
    run.nonfinite[1] = in_row
    check_budget(run.engine, run.streams, bad)


def _score(run: Run, reporter: Reporter) -> bool:
    """Evaluates the run, with averaged weights where there are any. Returns whether it is the best so far."""
    if not run.loaders:
        return False
    average_buffers(run.engine, run.engine.module)
    with run.ema.applied() if run.ema is not None else nullcontext():
        scores = evaluate(run.engine, run.loaders, meeting=run.meeting)
        if run.config.log.pictures:
            with run.meeting.alone("draws pictures"):
                reporter.show(run.progress.step, draw_pictures(run))
    run.progress.evaluated = run.progress.step
    missing = missing_samples(scores, run.loaders)
    for task, count in missing.items():
        reporter.say(
            f"{task}: {count} of {run.loaders[task].num_samples} samples could not be read, and are not "
            "in its scores"
        )
    figures = {f"val/{task}/{name}": x for task, values in scores.items() for name, x in values.items()}
    reporter.write(
        run.progress.step, figures | {f"val/{task}/missing": count for task, count in missing.items()}
    )
    score, best = ranking_score(run.engine.module, scores, run.config.train.best), run.progress.best
    if score is None or (best is not None and score <= best):
        return False
    run.progress.best, run.progress.best_step = score, run.progress.step
    return True


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
