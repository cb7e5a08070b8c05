"""Measurements of a sweep: one point per policy, reduction and schedule, on the weights of one or several
runs of one setup."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from launch.measure.compute import Entry, Workload, first_batch, first_grid, workload
from launch.measure.evaluator import Speed, evaluator_of, images_per_second, progress
from launch.measure.learning import LearnedSchedules
from launch.measure.panel import Panel
from launch.measure.planning import Aims, Models, Planned, Solver, check_rounds, leave_out, plan
from launch.measure.points import DIVERGENCE, SOLVED, LeftOut, Point, Sweep, Target, known
from launch.measure.scores import of_classes
from launch.measure.setups import Variant, check_one_setup, variants_of
from launch.measure.solving import SolvedSchedules, Solving, solving_batches
from launch.measure.watched import peak_mib
from launch.saved.run import SavedRun, chosen_tasks
from pipeline.config.schema import DataConfig
from pipeline.data.stream import EvalLoader, build_eval_loader
from pipeline.engine import launched
from pipeline.engine.connect import own_device
from pipeline.engine.model_on_device import ModelOnDevice
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Scores
from pipeline.merging.policies import POLICIES
from pipeline.parts import BASE, TRAINED
from pipeline.train.evaluate import evaluate, missing_samples

log = logging.getLogger(__name__)


def sweep(
    runs: Sequence[SavedRun],
    policies: Sequence[str],
    aims: Aims,
    *,
    solving: Solving | None = None,
    split: str = "val",
    seeds: Sequence[int] | None = None,
    rounds: int = 5,
    tasks: Sequence[str] | None = None,
    compared: bool = False,
    lenient: bool = False,
) -> list[Sweep]:
    """A sweep of each named task of the runs (None: all). Each sample is read once for all points. Raises
    ConfigError before anything is measured.

    Called by every process, each of which scores its part of the samples. Rank 0 alone measures speed, while
    the others wait, and has the results; on the others there are none.

    solving: where schedules are `solved` or `learned`, on which images, whatever their labels; the schedule
    is that of the first run's model. It takes one process, and minutes. seeds: see `variants_of`. compared:
    also measure how far the predictions are from the unmerged model's, and the memory. lenient: a policy that
    cannot serve the runs is named in the results.
    """
    check_one_setup(runs)
    check_rounds(rounds)
    config = runs[0].config
    solving = solving or Solving(seed=config.seed)
    datas = {task: config.tasks[task].data for task in chosen_tasks(config, tasks)}
    if aims.finds:
        solving.check(split)
        datas = {task: solving.data_of(task, data) for task, data in datas.items()}
    device = own_device()
    runs = [run.on(device) for run in runs]
    wanted: dict[str, list[Target]] = {"none": [0]}
    merging = [target for target in aims.targets if target]
    wanted |= {policy: merging for policy in policies if policy != "none"}
    refused: list[LeftOut] | None = [] if lenient else None
    variants = variants_of(list(wanted), runs, device, seeds=seeds, left_out=refused)
    wanted = {policy: wanted[policy] for policy in variants}
    if refused and set(wanted) == {"none"}:
        raise ConfigError(f"no policy can be measured on {runs[0].folder}: {refused[0].reason}")
    models = {policy: [own.model for own in of_policy] for policy, of_policy in variants.items()}
    opened = [_opened(device, runs[0], *own, models, aims, solving, split) for own in datas.items()]
    jobs = [_planned(device, own, models, wanted, aims) for own in opened]
    # by now each process knows that it can begin
    evaluator = evaluator_of(Panel([]), config.engine.precision)
    conditions = _conditions(evaluator, runs, split) | aims.conditions(seeds)
    measured = [_measure(evaluator, variants, job, rounds, conditions, compared) for job in jobs]
    for own in measured:
        if own is not None:
            own.left_out[:0] = refused or []
    return [found for found in measured if found is not None]


@dataclass(frozen=True)
class _Job:
    """One task. solved_on: images on which schedules are found, and what a sweep says of them. works: of one
    image of the first batch, at each point of the plan. left_out: the points that could not be planned."""

    loader: EvalLoader
    batch: Batch
    solved_on: Sequence[Batch]
    told: dict[str, Any]
    plan: Sequence[Planned] = ()
    works: Sequence[Workload] = ()
    left_out: Sequence[LeftOut] = ()


def _opened(
    device: torch.device,
    run: SavedRun,
    task: str,
    data: DataConfig,
    models: Models,
    aims: Aims,
    solving: Solving,
    split: str,
) -> _Job:
    """The data of a task, before any schedule is solved. Raises ConfigError and SampleError."""
    ranks = dict(rank=launched.rank(), world_size=launched.world_size())
    loader = build_eval_loader(task, data, **ranks, split=split, classes=run.classes(task))
    models["none"][0].check_data({task: loader})
    batch = first_batch(task, data, split, run.classes(task)).to(device)
    if not aims.finds:
        return _Job(loader, batch, (), {})
    images = solving_batches(task, data, run.classes(task), models["none"][0], solving)
    told = asdict(solving) | {"source": data.train, "images": sum(len(own.images) for own in images)}
    return _Job(loader, batch, images, {"solved_on": told})


def _planned(
    device: torch.device, job: _Job, models: Models, wanted: Mapping[str, Sequence[Target]], aims: Aims
) -> _Job:
    task = job.batch.task

    def found(policy: str, schedule: str) -> Solver:
        kind = SolvedSchedules if schedule == SOLVED else LearnedSchedules
        return kind(models[policy][0], job.solved_on, f"{policy}, {task},", device)

    left_out: list[LeftOut] = []
    grid = first_grid(models["none"][0], job.batch)
    points, works = [], []
    # what a policy refuses shows in an inference, before anything is measured
    for point in progress(plan(task, models, wanted, aims, found, grid, left_out), f"{task}: points"):
        try:
            works.append(workload((point.on(models[point.policy][0]), point.reduction), job.batch))
            points.append(point)
        except ConfigError as err:
            if point.policy == "none":
                raise
            leave_out(left_out, task, (point.policy, point.target, point.schedule), err)
    if {point.policy for point in points} == {"none"} != set(wanted):
        raise ConfigError(
            f"no policy can be run at any of the asked points of task '{task}': see the reasons above"
        )
    return replace(job, plan=points, works=works, left_out=left_out)


def _measure(
    evaluator: ModelOnDevice[Panel],
    variants: Mapping[str, Sequence[Variant]],
    job: _Job,
    rounds: int,
    conditions: dict[str, Any],
    compared: bool,
) -> Sweep | None:
    """None on other ranks than 0."""
    task = job.batch.task
    evaluator.module = _panel(variants, job.plan, compared)
    scores = evaluate(evaluator, {task: progress(job.loader, task)})[task]
    firsts: list[Entry] = [(point.on(variants[point.policy][0].model), point.reduction) for point in job.plan]
    speeds = images_per_second(evaluator, firsts, job.batch, rounds)
    if evaluator.rank > 0:
        return None
    peaks = [_peak(evaluator, entry, job.batch) if compared else None for entry in firsts]
    missing = missing_samples({task: scores}, {task: job.loader}).get(task, 0)
    if missing:
        told = "%s: %d of %d samples could not be read, and are not in the scores"
        log.warning(told, task, missing, job.loader.num_samples)
    points, start = [], 0
    for planned, work, speed, peak in zip(job.plan, job.works, speeds, peaks, strict=True):
        numbers = range(start, start := start + len(variants[planned.policy]))
        points.append(_point(planned, work, _scores_of(scores, numbers), speed, peak))
    seen = {
        "samples": int(scores["samples"] or 0),
        "missing": missing,
        "batch": len(job.batch.images),
        "pixels": list(job.batch.images.shape[-2:]),
    }
    classes = {"classes": list(job.loader.classes)} if of_classes(points[0].scores) else {}
    units = dict(variants["none"][0].model.tasks[task].metric_units)
    if DIVERGENCE in points[0].scores:
        units[DIVERGENCE] = ""
    return Sweep(
        task, units, points[0], points[1:], conditions | job.told | seen | classes, list(job.left_out)
    )


def _panel(variants: Mapping[str, Sequence[Variant]], plan: Sequence[Planned], compared: bool) -> Panel:
    """All models of all points. compared: each with the unmerged model of its run."""
    of_run = {own.run: number for number, own in enumerate(variants["none"])}
    entries = [(point.on(own.model), point.reduction) for point in plan for own in variants[point.policy]]
    wholes = [of_run.get(own.run, 0) for point in plan for own in variants[point.policy]]
    return Panel(entries, wholes if compared else None)


def _peak(evaluator: ModelOnDevice[Panel], entry: Entry, batch: Batch) -> float:
    """The memory of one inference of the batch, not compiled."""
    model, reduction = entry
    encode, task = model.encoder(batch.task, reduction), model.tasks[batch.task]
    with evaluator.autocast(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return peak_mib(lambda: task.infer(encode, batch), evaluator.device)


def _point(
    planned: Planned,
    work: Workload,
    scores: dict[str, list[float | None]],
    speed: Speed,
    peak: float | None,
) -> Point:
    return Point(
        policy=planned.policy,
        target=planned.target,
        kind=planned.schedule,
        schedule=work.schedule,
        tokens=work.tokens,
        macs=work.encoder_macs + work.head_macs,
        metric_macs=work.metric_macs,
        head_macs=work.head_macs,
        scores=scores,
        images_per_s=speed.whole,
        encoder_images_per_s=speed.encoder,
        peak_mib=peak,
        options=planned.options,
    )


def _scores_of(scores: Scores, entries: range) -> dict[str, list[float | None]]:
    """Metric -> values of one point's entries."""
    first = f"{entries.start}/"
    metrics = [name.removeprefix(first) for name in scores if name.startswith(first)]
    return {metric: [known(scores[f"{i}/{metric}"]) for i in entries] for metric in metrics}


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
        "merged_in_training": sorted({policy for run in runs if (policy := _merged_in_training(run))}),
    }


def _merged_in_training(run: SavedRun) -> str:
    """The policy under which a run's backbone learned; empty where it learned unmerged, or not at all."""
    policy, mode = run.config.merging.policy, run.config.train.mode
    learned = run.facts["step"] > 0 and BASE in TRAINED[mode]
    return policy if learned and POLICIES.usual(policy).merges else ""
