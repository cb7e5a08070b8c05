"""Measurements of a sweep: one point per policy and reduction, on the weights of one or several runs of one
setup."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from launch.measure.compute import Grid, Workload, first_batch, first_grid, workload
from launch.measure.evaluator import Panel, Speed, evaluator_of, images_per_second, progress, warn
from launch.measure.points import MACS, MERGED, TOKENS, Point, Sweep, Target
from launch.measure.scores import of_classes
from launch.measure.setups import check_one_setup, runs_of
from launch.saved.run import SavedRun, build, checked_reduction, chosen_tasks
from pipeline.backbone.macs import reduction_for_macs
from pipeline.backbone.vit import MergingViT
from pipeline.data.stream import EvalLoader, build_eval_loader
from pipeline.engine import launched
from pipeline.engine.connect import own_device
from pipeline.engine.model_on_device import ModelOnDevice
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Scores
from pipeline.merging.schedule import AnyReduction, ReductionSpec, reduction_for_merged
from pipeline.model import MultiTaskModel
from pipeline.train.evaluate import evaluate, missing_samples

log = logging.getLogger(__name__)

Models = dict[str, list[MultiTaskModel]]
"""Policy -> its models, one per run with different weights."""
Solver = Callable[[MergingViT, float, Grid], ReductionSpec]
"""Maps (backbone, share, grid of patches) to the reduction that reaches the share."""
Planned = tuple[str, Target, AnyReduction]
"""Policy, target and reduction of a point."""


def sweep(
    runs: Sequence[SavedRun],
    policies: Sequence[str],
    targets: Sequence[Target],
    *,
    merged: bool = False,
    exact: bool = False,
    within: float = 1.0,
    split: str = "val",
    seed: int | None = None,
    rounds: int = 5,
    tasks: Sequence[str] | None = None,
) -> list[Sweep]:
    """A sweep of each named task of the runs (None: all). Each sample is read once for all points. Raises
    ConfigError before anything is measured.

    Called by every process, each of which scores its part of the samples. Rank 0 alone measures speed, while
    the others wait, and has the results; on the others there are none.

    merged: a target that is a share means patches to merge, not the encoder's MACs. exact: the targets are
    reductions as they are, also those in (0, 1], keep rates. within: the share of the
    blocks, from the first one, that merge to reach such a target; the reduction is solved for each grid of
    patches.
    """
    check_one_setup(runs)
    if rounds < 0:
        raise ConfigError(f"rounds is {rounds}; give 0, which leaves speed out, or more")
    if not 0 < within <= 1:
        raise ConfigError(f"within is {within}; give a share of the blocks, in (0, 1]")
    targets = [tuple(target) if isinstance(target, list) else target for target in targets]
    exact = exact or all(isinstance(target, int) for target in targets)
    if within < 1 and exact:
        raise ConfigError(
            "within goes with shares (--macs, --merged); tokens removed per block are those of each "
            "block, so leave it out"
        )
    solve: Solver | None = (
        None if exact else partial(_merging if merged else reduction_for_macs, within=within)
    )
    kind = TOKENS if exact else MERGED if merged else MACS
    config = runs[0].config
    chosen = chosen_tasks(config, tasks)
    device = own_device()
    runs = [run.on(device) for run in runs]
    wanted: dict[str, list[Target]] = {"none": [0]}
    wanted |= {policy: [target for target in targets if target] for policy in policies if policy != "none"}
    models = {
        policy: [build(run, policy, seed=seed, compiled=True).to(device) for run in runs_of(policy, runs)]
        for policy in wanted
    }
    jobs = [_prepare(device, runs[0], task, models, wanted, solve, split) for task in chosen]
    # by now each process knows that it can begin
    evaluator = evaluator_of(Panel([]), config.engine.precision)
    conditions = _conditions(evaluator, runs, split) | {"targets": kind, "within": within}
    measured = [_measure(evaluator, models, job, rounds, conditions) for job in jobs]
    return [found for found in measured if found is not None]


def _merging(backbone: MergingViT, share: float, grid: Grid, *, within: float) -> ReductionSpec:
    return reduction_for_merged(backbone.depth, share, grid, within=within)


@dataclass(frozen=True)
class _Job:
    loader: EvalLoader
    batch: Batch
    plan: list[Planned]


def _prepare(
    device: torch.device,
    run: SavedRun,
    task: str,
    models: Models,
    wanted: dict[str, list[Target]],
    solve: Solver | None,
    split: str,
) -> _Job:
    data = run.config.tasks[task].data
    ranks = dict(rank=launched.rank(), world_size=launched.world_size())
    loader = build_eval_loader(task, data, **ranks, split=split, classes=run.classes(task))
    models["none"][0].check_data({task: loader})
    batch = first_batch(task, data, split, run.classes(task)).to(device)
    return _Job(loader, batch, _plan(task, models, wanted, solve, first_grid(models["none"][0], batch)))


def _plan(
    task: str, models: Models, wanted: dict[str, list[Target]], solve: Solver | None, grid: Grid
) -> list[Planned]:
    """Points to measure. The metric's own MACs count, so the same MACs can be different reductions.

    Targets that a policy cannot reach on the first input's grid are left out with a warning. Raises
    ConfigError where none is left.
    """
    plan: list[Planned] = []
    for policy, targets in wanted.items():
        for target in targets:
            try:
                plan.append((policy, target, _reduction(models[policy][0], target, solve, grid)))
            except ConfigError as err:
                warn(log, "%s, task %s, is left out at %s: %s", policy, task, target, err)
    if {policy for policy, _, _ in plan} == {"none"} != set(wanted):
        raise ConfigError(
            f"no policy can be run at any of the asked points of task '{task}': see the reasons above"
        )
    return plan


def _reduction(model: MultiTaskModel, target: Target, solve: Solver | None, grid: Grid) -> AnyReduction:
    if solve is None or not isinstance(target, float):
        return checked_reduction(model, grid, target)
    solved = cache(partial(solve, model.backbone, target))
    # raises ConfigError now, before anything is measured
    solved(grid)
    return solved


def _measure(
    evaluator: ModelOnDevice[Panel], models: Models, job: _Job, rounds: int, conditions: dict[str, Any]
) -> Sweep | None:
    """None on other ranks than 0."""
    task = job.batch.task
    evaluator.module = Panel(
        [(model, reduction) for policy, _, reduction in job.plan for model in models[policy]]
    )
    scores = evaluate(evaluator, {task: progress(job.loader, task)})[task]
    firsts = [(models[policy][0], reduction) for policy, _, reduction in job.plan]
    speeds = images_per_second(evaluator, firsts, job.batch, rounds)
    if evaluator.rank > 0:
        return None
    missing = missing_samples({task: scores}, {task: job.loader}).get(task, 0)
    if missing:
        told = "%s: %d of %d samples could not be read, and are not in the scores"
        log.warning(told, task, missing, job.loader.num_samples)
    points, start = [], 0
    for (policy, target, _), entry, speed in zip(job.plan, firsts, speeds, strict=True):
        numbers = range(start, start := start + len(models[policy]))
        points.append(_point(policy, target, workload(entry, job.batch), _scores_of(scores, numbers), speed))
    seen = {
        "samples": int(scores["samples"] or 0),
        "missing": missing,
        "batch": len(job.batch.images),
        "pixels": list(job.batch.images.shape[-2:]),
    }
    classes = {"classes": list(job.loader.classes)} if of_classes(points[0].scores) else {}
    units = models["none"][0].tasks[task].metric_units
    return Sweep(task, units, points[0], points[1:], conditions | seen | classes)


def _point(
    policy: str, target: Target, work: Workload, scores: dict[str, list[float | None]], speed: Speed
) -> Point:
    return Point(
        policy=policy,
        target=target,
        schedule=work.schedule,
        tokens=work.tokens,
        macs=work.encoder_macs + work.head_macs,
        metric_macs=work.metric_macs,
        head_macs=work.head_macs,
        scores=scores,
        images_per_s=speed.whole,
        encoder_images_per_s=speed.encoder,
    )


def _scores_of(scores: Scores, entries: range) -> dict[str, list[float | None]]:
    """Metric -> values of one point's entries."""
    first = f"{entries.start}/"
    metrics = [name.removeprefix(first) for name in scores if name.startswith(first)]
    return {metric: [scores[f"{i}/{metric}"] for i in entries] for metric in metrics}


def _conditions(evaluator: ModelOnDevice[Panel], runs: Sequence[SavedRun], split: str) -> dict[str, Any]:
    device = torch.cuda.get_device_name(evaluator.device) if evaluator.device.type == "cuda" else "CPU"
    return {
        "runs": [str(run) for run in runs],
        "digests": [run.facts["digest"] for run in runs],
        "split": split,
        "device": device,
        "threads": torch.get_num_threads(),
        "precision": evaluator.precision,
        "torch": torch.__version__,
    }
