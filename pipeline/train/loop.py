"""The training loop. It knows no task, no policy and no launcher. Between two reports the host does not wait
for the device."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.config.schema import RunConfig
from pipeline.errors import PipelineError, SampleError, StorageError, counted
from pipeline.modes import set_modes
from pipeline.train import checkpoint
from pipeline.train.budget import bad_summary, check_budget, count_bad
from pipeline.train.collective import average_buffers
from pipeline.train.evaluate import evaluate, missing_samples, ranking_score
from pipeline.train.metrics import MetricSums, mean
from pipeline.train.mixing import tasks_of_step
from pipeline.train.rates import reported_rates
from pipeline.train.reporting import Reporter, Stopwatch
from pipeline.train.setup import Run, build_run, write_config
from pipeline.train.signals import StopRequest
from pipeline.train.train_step import train_step


def train(config: RunConfig, resume: str = "auto") -> Path:
    """Trains until the last step, or until SIGTERM, SIGUSR1 or SIGINT. Returns the folder of the run. resume:
    see `build_run`. Raises PipelineError."""
    run = build_run(config, resume)
    main, step = run.engine.rank == 0, run.progress.step
    if main:
        # asked now, as the source may change before a checkpoint is saved
        checkpoint.commit()
    with run.lock, StopRequest() as stop:
        write_config(run)
        with Reporter(Path(config.output), main=main, step=step, total_steps=run.total_steps) as reporter:
            for line in run.about:
                reporter.say(line)
            _loop(run, reporter, stop)
    return Path(config.output)


def _loop(run: Run, reporter: Reporter, stop: StopRequest) -> None:
    settings, sums, watch = run.config.train, MetricSums(only_finite=True), Stopwatch()
    streams = {name: iter(stream) for name, stream in run.streams.items()}
    learning: frozenset[str] | None = None
    while run.progress.step < run.total_steps:
        if (trains := run.procedure.spec(run.progress.step).trains) != learning:
            set_modes(run.engine.module, trains)
            learning = trains
        plan = tasks_of_step(run.resolved, run.progress.step)
        with _saving_if_data_fail(run, reporter):
            norm = train_step(run, plan, streams, sums, watch)
        reporter.advance()
        step, last = run.progress.step, run.progress.step == run.total_steps
        stopping = stop.agreed(run.engine)
        if last or stopping or step % settings.log_every == 0:
            try:
                _report(run, reporter, sums, watch, norm)
            # raised by every rank alike
            except PipelineError:
                reporter.say(f"saved {_save(run, False)}")
                raise
        better = False
        if run.loaders and _due(step, settings.eval_every) and not (last or stopping):
            with _saving_if_data_fail(run, reporter):
                better = _score(run, reporter)
        save_every = settings.save_every or default_save_every(run.total_steps)
        if last or stopping or better or _due(step, save_every):
            reporter.say(f"saved {_save(run, better)}")
        for line in bad_summary(run.engine, run.streams) if last or stopping else ():
            reporter.say(line)
        if stopping and not last:
            reporter.say(f"stopped as asked after step {step} of {run.total_steps}; --resume auto continues")
            return
    # the run is saved by now: if it is killed in this evaluation, it is repeated on resumption
    if run.loaders and run.progress.evaluated < run.progress.step:
        _save(run, _score(run, reporter))


@contextmanager
def _saving_if_data_fail(run: Run, reporter: Reporter) -> Iterator[None]:
    """While data are read: if storage fails, or too many samples in a row are bad, the steps since the last
    save are saved before the run ends. Only with one process, as other ranks would wait for this one
    elsewhere."""
    try:
        yield
    except (SampleError, StorageError):
        if run.engine.world_size == 1 and run.progress.step > run.saved:
            reporter.say(f"saved {_save(run, False)}")
        raise


def _report(run: Run, reporter: Reporter, sums: MetricSums, watch: Stopwatch, norm: torch.Tensor) -> None:
    """Reads the figures from the device, on every rank, and writes them. Raises PipelineError where too many
    steps in a row were skipped, or too many samples are bad."""
    bad = count_bad(run.engine, run.streams)
    values = {name: mean(pair) for name, pair in sums.reduce(run.engine).items()}
    values |= reported_rates(run.groups, run.progress.step - 1, run.config, run.total_steps)
    values |= {"grad_norm": float(norm), "bad_samples": sum(bad.values()), **watch.read()}
    in_row, most = run.nonfinite.tolist()
    run.progress.nonfinite = int(in_row)
    # fewer than usual at the end, and after a resumption between two reports
    if (covered := run.progress.step - run.reported) != run.config.train.log_every:
        values["averaged_steps"] = covered
    run.reported = run.progress.step
    values |= {
        f"epoch/{task}": run.progress.samples.get(task, 0) / stream.num_samples
        for task, stream in run.streams.items()
    }
    reporter.write(run.progress.step, values | ({"skipped_in_row": most} if most else {}))
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
    average_buffers(run.engine, run.engine.module)
    with run.ema.applied() if run.ema is not None else nullcontext():
        scores = evaluate(run.engine, run.loaders)
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
    run.progress.best = score
    return True


def _save(run: Run, better: bool) -> Path:
    average_buffers(run.engine, run.engine.module)
    run.progress.nonfinite = int(run.nonfinite[0])
    facts = _facts(run) if run.engine.rank == 0 else {}
    average = (
        {f"ema.{name}": tensor for name, tensor in run.ema.state_dict().items()}
        if run.ema is not None
        else {}
    )
    keep = run.config.train.keep_checkpoints
    folder = checkpoint.save(
        run.engine, run.root, run.progress.step, average, facts, since=run.saved, keep=keep, best=better
    )
    run.saved = run.progress.step
    return folder


def _facts(run: Run) -> dict[str, Any]:
    """Everything in a checkpoint that is not a tensor. It is the same on every rank; rank 0 writes it."""
    return checkpoint.run_facts(run.config, run.engine.world_size) | {
        "global_batch": run.resolved.global_batch,
        "classes": run.classes,
        "progress": asdict(run.progress),
        "streams": {name: stream.state_dict() for name, stream in run.streams.items()},
    }


def default_save_every(total_steps: int) -> int:
    """Steps between saves. A function of the run alone: ranks that looked at their clocks would disagree."""
    return min(1000, max(100, total_steps // 20))


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
