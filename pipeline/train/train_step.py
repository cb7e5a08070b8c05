"""One optimizer step of a run: its micro-batches, the procedure, and what is noted of it. It asks the device
nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import RunConfig
from pipeline.errors import StorageError
from pipeline.interfaces import Batch, StepSpec
from pipeline.plan.facts import range_of
from pipeline.rng import generator, seed_of
from pipeline.train.between import Between
from pipeline.train.conflict import GradientProbe
from pipeline.train.metrics import MetricSums
from pipeline.train.rates import learning_rates
from pipeline.train.reporting import Stopwatch
from pipeline.train.setup import Run
from pipeline.train.statistics import RunningStatistics
from pipeline.train.steps.procedure import MicroBatch, StepWork

Streams = Mapping[str, Iterator[Batch]]


def train_step(run: Run, plan: Sequence[str], streams: Streams, sums: MetricSums, watch: Stopwatch) -> Tensor:
    """An optimizer step over a micro-batch of each task of the plan; the gradient norm before clipping, on
    the device. Raises StorageError where data cannot be read; the run is then as it was before."""
    step = run.progress.step
    spec = run.procedure.spec(step)
    run.gate.open(spec.trains)
    probe = run.probe if run.probe is not None and run.probe.due(step) else None
    rates = learning_rates(run.groups, step, run.config, run.total_steps, trains=spec.trains, tasks=plan)
    before = Between(run)
    work = StepWork(run.engine, _micro_batches(run, spec, plan, streams, watch), rates, sums, probe)
    try:
        norm = run.procedure(work)
    except StorageError:
        before.restore(run)
        raise
    if probe is not None:
        _follow(run, probe, sums)
    _count(run, norm, before.statistics)
    return norm


def _micro_batches(
    run: Run, spec: StepSpec, plan: Sequence[str], streams: Streams, watch: Stopwatch
) -> Iterator[MicroBatch]:
    step = run.progress.step
    for i, task in enumerate(plan):
        batch = _next_batch(run, streams, watch, task, i)
        own = replace(
            spec, reduction=_draw_reduction(run.config, task, step), draw=_draw(run.config, step, i)
        )
        yield MicroBatch(batch, own, 1 / run.resolved.micro_batches[task], last=i == len(plan) - 1)


def _next_batch(run: Run, streams: Streams, watch: Stopwatch, task: str, micro_step: int) -> Batch:
    """The task's next batch on the device; its mixture (mixup, cutmix) is the rank's own. micro_step: within
    the step."""
    batch = watch.next_of(streams[task]).to(run.engine.device)
    samples = run.config.tasks[task].data.batch_size * run.engine.world_size
    watch.count(samples)
    run.progress.samples[task] = run.progress.samples.get(task, 0) + samples
    if task not in run.mixers:
        return batch
    return run.mixers[task](
        batch, seed_of(run.config.seed, "mix", task, run.engine.rank, run.progress.step), micro_step
    )


def _draw_reduction(config: RunConfig, task: str, step: int) -> int | None:
    """A function of (seed, task, step), and so the same on every rank; None leaves the model's own."""
    _, span = range_of(config, task)
    if span is None:
        return None
    low, high = span
    return int(torch.randint(low, high + 1, (), generator=generator(config.seed, "reduction", task, step)))


def _draw(config: RunConfig, step: int, micro_step: int) -> float:
    """In [0, 1), the same on every rank: a choice that changes which layers compute would otherwise block
    collectives."""
    return float(
        torch.rand((), generator=generator(config.seed, "draw", step, micro_step), dtype=torch.float64)
    )


def _follow(run: Run, probe: GradientProbe, sums: MetricSums) -> None:
    """Logs the tasks' gradients once all are measured, and lets what balances the tasks follow them."""
    if (conflict := probe.read(run.engine)) is not None:
        balancing: Any = run.engine.module.balancing
        balancing.follow(conflict.norms, conflict.losses)
        sums.add(conflict.logs())


def _count(run: Run, norm: Tensor, statistics: RunningStatistics) -> None:
    """The step is done. Where its norm is not finite the engine has skipped it, and running statistics go
    back to what they were."""
    skipped = ~norm.isfinite()
    statistics.restore(skipped)
    if run.ema is not None:
        run.ema.update()
    run.nonfinite[0].add_(1).mul_(skipped)
    run.nonfinite[1].copy_(run.nonfinite.max())
    run.progress.step += 1
