"""One optimizer step of a run: its micro-batches, the procedure, and its figures. The host does not wait for
the device."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.config.schema import RunConfig
from pipeline.errors import SampleError, StopAsked, StorageError
from pipeline.interfaces import Batch, StepSpec, Sums
from pipeline.parts import BALANCE, METRIC
from pipeline.plan.facts import range_of
from pipeline.rng import generator, seed_everything, seed_of, uniform
from pipeline.train.between import Between
from pipeline.train.conflict import GradientProbe
from pipeline.train.kind_norms import GRADIENT_NORMS
from pipeline.train.metrics import MetricSums
from pipeline.train.rates import learning_rates
from pipeline.train.reporting import Stopwatch
from pipeline.train.run import Run
from pipeline.train.statistics import RunningStatistics
from pipeline.train.steps.procedure import MicroBatch, StepWork

Streams = Mapping[str, Iterator[Batch]]


def train_step(run: Run, plan: Sequence[str], streams: Streams, sums: MetricSums, watch: Stopwatch) -> Tensor:
    """Makes an optimizer step over the micro-batches of the plan, which names the task of each. Returns the
    gradient norm before clipping, on the device.

    Raises SampleError and StorageError where data cannot be read, and StopAsked where the run was asked to
    stop, on all ranks alike; all that a checkpoint holds is then as it was before the step. The engine keeps
    gradients of earlier micro-batches: the run may be saved, but makes no further step.
    """
    step = run.progress.step
    # dropout and drop path; they differ between ranks, and a run that continues draws the same
    seed_everything(run.config.seed, "step", run.engine.rank, step)
    spec = run.procedure.spec(step)
    if run.bilevel is not None:
        spec = replace(spec, trains=run.bilevel.trains(step, spec.trains))
    run.gate.open(spec.trains)
    probe = run.probe if run.probe is not None and run.probe.due(step) else None
    rates = learning_rates(run.groups, step, run.config, run.total_steps, trains=spec.trains, tasks=plan)
    before = Between(run)
    micro_batches = _micro_batches(run, spec, plan, streams, watch)
    measuring = nullcontext() if run.kind_norms is None else run.kind_norms.measuring(step)
    teaching = nullcontext() if run.bilevel is None else run.bilevel.teaching(run.engine, step)
    try:
        with measuring, teaching as lesson:
            norm = run.procedure(StepWork(run.engine, micro_batches, rates, sums, probe, step, lesson))
    except (SampleError, StorageError, StopAsked):
        before.restore(run)
        raise
    if probe is not None:
        _follow(run, probe, sums)
    if run.bilevel is not None and lesson is not None:
        sums.add(run.bilevel.follow(lesson))
    _count_step(run, norm, before.statistics)
    if spec.trains.isdisjoint({METRIC}) or spec.trains <= {METRIC, BALANCE}:
        sums.add(_norms_by_step(run, spec, norm))
    if run.kind_norms is not None:
        sums.add(run.kind_norms.logs(run.engine, norm))
    return norm


def _micro_batches(
    run: Run, spec: StepSpec, plan: Sequence[str], streams: Streams, watch: Stopwatch
) -> Iterator[MicroBatch]:
    step = run.progress.step
    for i, task in enumerate(plan):
        batch = _next_batch(run, streams, watch, task, i)
        # the same on every rank: ranks that compute different layers would wait for each other for ever
        draw = uniform(run.config.seed, "draw", step, i)
        drawn = replace(spec, reduction=_draw_reduction(run.config, task, step), draw=draw)
        yield MicroBatch(batch, drawn, 1 / run.resolved.micro_batches[task], last=i == len(plan) - 1)


def _next_batch(run: Run, streams: Streams, watch: Stopwatch, task: str, micro_step: int) -> Batch:
    """The task's next batch on the device, mixed (mixup, cutmix) by draws that differ between ranks.
    micro_step: number of the micro-batch in the step."""
    with watch.waiting():
        loaded = run.meeting.next(streams[task], f"computes step {run.progress.step}")
    assert loaded is not None, "a training stream is endless"
    run.meeting.note(loaded)
    batch = loaded.to(run.engine.device)
    samples = run.config.tasks[task].data.batch_size * run.engine.world_size
    watch.count(samples)
    run.progress.samples[task] = run.progress.samples.get(task, 0) + samples
    epochs = (run.progress.samples[task] - samples) / run.streams[task].num_samples
    if task not in run.mixers or run.mixers[task].rests(epochs):
        return batch
    return run.mixers[task](
        batch, seed_of(run.config.seed, "mix", task, run.engine.rank, run.progress.step), micro_step
    )


def _draw_reduction(config: RunConfig, task: str, step: int) -> int | None:
    """The reduction of the task in the step, drawn from its range: a function of (seed, task, step), so the
    same on every rank. None without a range."""
    _, span = range_of(config, task)
    if span is None:
        return None
    low, high = span
    return int(torch.randint(low, high + 1, (), generator=generator(config.seed, "reduction", task, step)))


def _norms_by_step(run: Run, spec: StepSpec, norm: Tensor) -> Sums:
    """The norm under the name of what learns in the step; nothing where all steps train the same. Both names
    are there, as ranks and reports expect the same names."""
    kinds = {group["kind"] for group in run.groups} - {BALANCE}
    if METRIC not in kinds or kinds == {METRIC}:
        return {}
    own = int(METRIC not in spec.trains)
    nothing = (torch.zeros_like(norm), 0.0)
    return {name: (norm, 1.0) if i == own else nothing for i, name in enumerate(GRADIENT_NORMS)}


def _follow(run: Run, probe: GradientProbe, sums: MetricSums) -> None:
    """Logs the tasks' gradients once all are measured, and hands them to the balancing."""
    if (conflict := probe.read(run.engine)) is not None:
        run.engine.module.balancing.follow(conflict.norms, conflict.losses)
        sums.add(conflict.logs())


def _count_step(run: Run, norm: Tensor, statistics: RunningStatistics) -> None:
    """Counts the step as done. If its norm is not finite, the engine has skipped it, and running statistics
    are restored."""
    skipped = ~norm.isfinite()
    statistics.restore(skipped)
    if run.ema is not None:
        run.ema.update(run.progress.step)
    run.nonfinite[0].add_(1).mul_(skipped)
    run.nonfinite[1].copy_(run.nonfinite.max())
    run.progress.step += 1
