"""What a sweep measures: one point per policy and reduction, on the weights of one or several runs of one setup."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from launch.restore import UNTRAINED, SavedRun, build, checked_reduction, grid_of
from launch.scoring import Entry, Evaluator, Panel, images_per_second, progress
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.merging.macs import count_macs, reduction_for_macs
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel
from pipeline.train.evaluate import evaluate

log = logging.getLogger(__name__)

Target = float | int
"""A share of the unmerged MACs in (0, 1), or tokens removed per block."""


@dataclass(frozen=True)
class Point:
    """target: as asked, 0 for the unmerged model. macs: of one image, head and merging included. scores: metric -> one value per run,
    or one value where all runs have the weights that count. images_per_s: one value per round."""

    policy: str
    target: Target
    schedule: tuple[int, ...]
    tokens: tuple[int, ...]
    macs: int
    metric_macs: int
    head_macs: int
    scores: dict[str, list[float]]
    images_per_s: list[float]


@dataclass(frozen=True)
class Sweep:
    """One task. `metric` is the one that the task ranks by; `whole` the unmerged model."""

    task: str
    metric: str
    whole: Point
    points: list[Point]
    conditions: dict[str, Any]


def sweep(
    runs: Sequence[SavedRun],
    policies: Sequence[str],
    targets: Sequence[Target],
    *,
    split: str = "val",
    seed: int | None = None,
    rounds: int = 5,
) -> list[Sweep]:
    """All tasks of the runs, each sample read once for all points. Raises ConfigError before anything is measured."""
    _check_one_setup(runs)
    config = runs[0].config
    evaluator = Evaluator(torch.nn.Identity(), bf16=config.engine.precision == "bf16")
    if evaluator.world_size > 1:
        raise ConfigError(f"a sweep measures speed, so it is one process, not {evaluator.world_size}; start it without a launcher")
    runs = [replace(run, tensors={name: tensor.to(evaluator.device) for name, tensor in run.tensors.items()}) for run in runs]
    wanted = {"none": [0]} | {policy: [target for target in targets if target] for policy in policies if policy != "none"}
    models = {policy: [build(run, policy, seed=seed).to(evaluator.device) for run in _runs_of(policy, runs)] for policy in wanted}
    plans = {task: _plan(runs[0], task, models, wanted) for task in config.tasks}
    return [_sweep_task(evaluator, runs, task, models, plan, split, rounds) for task, plan in plans.items()]


def _check_one_setup(runs: Sequence[SavedRun]) -> None:
    setups = [(replace(run.config.backbone, weights=None, pretrained=False), run.config.tasks) for run in runs]
    for run, setup in zip(runs, setups, strict=True):
        if setup != setups[0]:
            raise ConfigError(f"{run.folder} and {runs[0].folder} differ in backbone or tasks; sweep runs of one setup together")


def _runs_of(policy: str, runs: Sequence[SavedRun]) -> Sequence[SavedRun]:
    """All runs, or the first alone where they have the same weights apart from embeddings, which the policy does not use."""
    if POLICIES.build(policy.removesuffix(UNTRAINED)).metric_source == "embedding":
        return runs
    first = runs[0].tensors
    same = all(torch.equal(first[name], tensor) for run in runs[1:] for name, tensor in run.tensors.items() if ".metric." not in name)
    return runs[:1] if same else runs


Plan = list[tuple[str, Target, ReductionSpec]]


def _plan(run: SavedRun, task: str, models: dict[str, list[MultiTaskModel]], wanted: dict[str, list[Target]]) -> Plan:
    """Policy, target and reduction of each point. The metric's own cost counts, so equal MACs can be different reductions.

    What a policy cannot reach is left out, and said so; ConfigError where nothing is left.
    """
    plan: Plan = []
    for policy, targets in wanted.items():
        for target in targets:
            try:
                plan.append((policy, target, _reduction(run, models[policy][0], task, target)))
            except ConfigError as err:
                log.warning("%s, task %s, is left out at %s: %s", policy, task, target, err)
    if {policy for policy, _, _ in plan} == {"none"} != set(wanted):
        raise ConfigError(f"no policy can be run at any of the asked points of task '{task}': see the reasons above")
    return plan


def _reduction(run: SavedRun, model: MultiTaskModel, task: str, target: Target) -> ReductionSpec:
    if isinstance(target, float):
        return reduction_for_macs(model.backbone, target, grid_of(run, model, task))
    return checked_reduction(run, model, task, target)


def _sweep_task(
    evaluator: Evaluator, runs: Sequence[SavedRun], task: str, models: dict[str, list[MultiTaskModel]], plan: Plan, split: str, rounds: int
) -> Sweep:
    loader = build_eval_loader(task, runs[0].config.tasks[task].data, rank=0, world_size=1, split=split)
    models["none"][0].check_data({task: loader})
    entries = [(model, reduction) for policy, _, reduction in plan for model in models[policy]]
    evaluator.module = Panel(entries)
    scores = evaluate(evaluator, {task: progress(loader, task)})[task]
    batch = next(iter(loader)).to(evaluator.device)
    speeds = images_per_second(evaluator, [(models[policy][0], reduction) for policy, _, reduction in plan], batch, rounds)
    points, start = [], 0
    for (policy, target, reduction), speed in zip(plan, speeds, strict=True):
        numbers = range(start, start := start + len(models[policy]))
        point = _count(runs[0], (models[policy][0], reduction), batch)
        points.append(replace(point, policy=policy, target=target, scores=_scores_of(scores, numbers), images_per_s=speed))
    conditions = _conditions(evaluator, runs, batch, int(scores["samples"]), split)
    head: Any = models["none"][0].tasks[task]
    return Sweep(task, head.main_metric, points[0], points[1:], conditions)


def _scores_of(scores: dict[str, float], entries: range) -> dict[str, list[float]]:
    """Metric -> values of the entries of one point."""
    first = f"{entries.start}/"
    metrics = [name.removeprefix(first) for name in scores if name.startswith(first)]
    return {metric: [scores[f"{i}/{metric}"] for i in entries] for metric in metrics}


def _count(run: SavedRun, entry: Entry, batch: Batch) -> Point:
    """A point without its measurements. The head's MACs are counted in a pass, as its form is the task's own business."""
    model, reduction = entry
    grid, task = grid_of(run, model, batch.task), model.tasks[batch.task]
    macs = count_macs(model.backbone, grid, reduction)
    with torch.no_grad():
        output = model.backbone(batch.images, reduction=reduction, taps=task.taps, relaxed=False)
        with FlopCounterMode(display=False) as counter:
            task(output, batch)
    head = counter.get_total_flops() // 2 // len(batch.images)
    schedule = model.backbone.schedule(grid, reduction)
    return Point("", 0, schedule, macs.tokens, macs.total + head, sum(macs.metric), head, {}, [])


def _conditions(evaluator: Evaluator, runs: Sequence[SavedRun], batch: Batch, samples: int, split: str) -> dict[str, Any]:
    device = torch.cuda.get_device_name(evaluator.device) if evaluator.device.type == "cuda" else "CPU"
    return {
        "runs": [str(run) for run in runs],
        "digests": [run.facts["digest"] for run in runs],
        "split": split,
        "samples": samples,
        "device": device,
        "threads": torch.get_num_threads(),
        "batch": len(batch.images),
        "precision": evaluator.precision,
        "torch": torch.__version__,
    }
