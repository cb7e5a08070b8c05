"""Measurements of a sweep: one point per policy and reduction, on the weights of one or several runs of one
setup."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from launch.measure.compute import Grid, first_batch, first_grid, workload
from launch.measure.evaluator import Panel, evaluator_of, images_per_second, progress
from launch.measure.points import MACS, MERGED, TOKENS, Point, Sweep, Target
from launch.measure.scores import of_classes
from launch.saved.policy_names import read_policy
from launch.saved.run import SavedRun, build, checked_reduction, chosen_tasks
from pipeline.backbone.macs import reduction_for_macs
from pipeline.backbone.vit import MergingViT
from pipeline.config.schema import RunConfig
from pipeline.data.stream import EvalLoader, build_eval_loader
from pipeline.engine.model_on_device import ModelOnDevice
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Scores
from pipeline.merging.schedule import AnyReduction, ReductionSpec, reduction_for_merged
from pipeline.model import MultiTaskModel
from pipeline.parts import BASE, HEAD, roles_of
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

    merged: a target that is a share means patches to merge, not the encoder's MACs. exact: the targets are
    reductions as they are, also those in (0, 1], keep rates. within: the share of the
    blocks, from the first one, that merge to reach such a target; the reduction is solved for each grid of
    patches.
    """
    _check_one_setup(runs)
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
    evaluator = evaluator_of(Panel([]), config.engine.precision)
    if evaluator.world_size > 1:
        raise ConfigError(
            f"a sweep measures speed, so it is one process, not {evaluator.world_size}; start it "
            "without a launcher"
        )
    runs = [run.on(evaluator.device) for run in runs]
    wanted: dict[str, list[Target]] = {"none": [0]}
    wanted |= {policy: [target for target in targets if target] for policy in policies if policy != "none"}
    models = {
        policy: [build(run, policy, seed=seed).to(evaluator.device) for run in _runs_of(policy, runs)]
        for policy in wanted
    }
    jobs = [_prepare(evaluator, runs[0], task, models, wanted, solve, split) for task in chosen]
    conditions = _conditions(evaluator, runs, split) | {"targets": kind, "within": within}
    return [_measure(evaluator, models, job, rounds, conditions) for job in jobs]


def _merging(backbone: MergingViT, share: float, grid: Grid, *, within: float) -> ReductionSpec:
    return reduction_for_merged(backbone.depth, share, grid, within=within)


def _check_one_setup(runs: Sequence[SavedRun]) -> None:
    first = _setup(runs[0].config)
    for run in runs[1:]:
        if _setup(run.config) != first:
            raise ConfigError(
                f"{run.folder} and {runs[0].folder} differ in backbone or tasks, in what their embeddings "
                "share or in how rotary positions merge; sweep runs of one setup together"
            )
        for task in run.config.tasks:
            known = [classes for classes in (runs[0].classes(task), run.classes(task)) if classes]
            if len(known) == 2 and known[0] != known[1]:
                raise ConfigError(
                    f"{run.folder} and {runs[0].folder} have other classes of task '{task}', or the "
                    "same in another "
                    "order, as their shards had when they were trained; sweep them one by one"
                )


def _setup(config: RunConfig) -> tuple[Any, ...]:
    backbone = replace(config.backbone, weights=None, pretrained=False)
    merging = replace(config.merging, policy="none", reduction=0, options={})
    return backbone, config.tasks, merging


def _runs_of(policy: str, runs: Sequence[SavedRun]) -> Sequence[SavedRun]:
    """All runs, or only the first where all have the same weights. Weights that the policy does not use,
    of embeddings and of the balance, do not matter."""
    if read_policy(policy)[2]:
        return runs
    roles = roles_of(build(runs[0], policy))
    used = [name for name in runs[0].tensors if name in roles and roles[name].kind in (BASE, HEAD)]
    same = all(torch.equal(runs[0].tensors[name], run.tensors[name]) for run in runs[1:] for name in used)
    return runs[:1] if same else runs


@dataclass(frozen=True)
class _Job:
    loader: EvalLoader
    batch: Batch
    plan: list[Planned]


def _prepare(
    evaluator: ModelOnDevice[Panel],
    run: SavedRun,
    task: str,
    models: Models,
    wanted: dict[str, list[Target]],
    solve: Solver | None,
    split: str,
) -> _Job:
    data = run.config.tasks[task].data
    loader = build_eval_loader(task, data, rank=0, world_size=1, split=split, classes=run.classes(task))
    models["none"][0].check_data({task: loader})
    batch = first_batch(task, data, split, run.classes(task)).to(evaluator.device)
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
                log.warning("%s, task %s, is left out at %s: %s", policy, task, target, err)
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
) -> Sweep:
    task, batch = job.batch.task, job.batch
    evaluator.module = Panel(
        [(model, reduction) for policy, _, reduction in job.plan for model in models[policy]]
    )
    scores = evaluate(evaluator, {task: progress(job.loader, task)})[task]
    missing = missing_samples({task: scores}, {task: job.loader}).get(task, 0)
    if missing:
        log.warning(
            "%s: %d of %d samples could not be read, and are not in the scores",
            task,
            missing,
            job.loader.num_samples,
        )
    firsts = [(models[policy][0], reduction) for policy, _, reduction in job.plan]
    speeds = images_per_second(evaluator, firsts, batch, rounds)
    points, start = [], 0
    for (policy, target, _), entry, speed in zip(job.plan, firsts, speeds, strict=True):
        numbers = range(start, start := start + len(models[policy]))
        work = workload(entry, batch)
        macs = work.encoder_macs + work.head_macs, work.metric_macs, work.head_macs
        points.append(
            Point(
                policy,
                target,
                work.schedule,
                work.tokens,
                *macs,
                _scores_of(scores, numbers),
                speed.whole,
                speed.encoder,
            )
        )
    seen = {
        "samples": int(scores["samples"] or 0),
        "missing": missing,
        "batch": len(batch.images),
        "pixels": list(batch.images.shape[-2:]),
    }
    classes = {"classes": list(job.loader.classes)} if of_classes(points[0].scores) else {}
    units = models["none"][0].tasks[task].metric_units
    return Sweep(task, units, points[0], points[1:], conditions | seen | classes)


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
