"""How merged models agree with the unmerged one, against compute, on pictures without labels."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from launch.measure.evaluator import turns, warn
from launch.measure.points import MACS, SOLVED, Point, Sweep
from launch.published.merged import counted_for
from launch.saved.device import now
from pipeline.backbone.macs import Counted
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.engine.model_on_device import autocast
from pipeline.errors import ConfigError, StopAsked
from pipeline.interfaces import Batch
from pipeline.merging.schedule import EVEN, WITHIN
from pipeline.objectives.signal import Signal
from pipeline.ranks import Processes, Ranks
from pipeline.train.metrics import TallySums

log = logging.getLogger(__name__)
TASK = "agreement"
SAMPLES = "samples"
Solve = Callable[[str, Counted, float], list[int]]
"""Maps (policy, what its MACs are counted of, share of the MACs) to a solved schedule. Raises ConfigError."""
TIMED = "timed"
"""Images on which rank 0 measures speed. A tally, so that all ranks know whether it has any."""


@dataclass(frozen=True)
class Entry:
    """A model at one share of the MACs, which is 0 for the unmerged one, and its r of each block. kind: of
    its schedule, see `Point`."""

    policy: str
    target: float
    kind: str
    model: MergingModel
    schedule: list[int]


def agreement(
    models: Mapping[str, MergingModel],
    signal: Signal,
    batches: Iterable[Batch],
    targets: Sequence[float],
    *,
    name: str,
    split: str,
    device: torch.device,
    precision: str,
    rounds: int = 0,
    schedules: Sequence[str] = (EVEN,),
    solve: Solve | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Sweep | None:
    """The metrics of the signal for each policy at each share of the MACs, as means over the images.

    models: policy -> model on the device, in evaluation mode; `none` is among them. batches: those of this
    process. name: of the model. split: of the images. rounds: timed passes of the first batch; 0 leaves speed
    out. schedules: how a share is reached, of SCHEDULES; solve: gives those that are `solved`. Raises
    StopAsked once `stopping` says so, and ConfigError where no target can be reached or there are no images.
    A collective: rank 0 alone measures speed and has the result, which is None on the others.
    """
    ranks, sums = Processes(device), TallySums()
    entries: list[Entry] = []
    first: Tensor | None = None
    with torch.inference_mode(), autocast(device, precision):
        for batch in batches:
            if stopping():
                raise StopAsked("the measurement was broken off, as asked")
            images = batch.to(device).images
            if first is None:
                first, entries = images, _entries(models, targets, schedules, solve, images[:1])
                if ranks.rank == 0:
                    sums.add({TIMED: torch.full((), len(images), device=images.device)})
            _add_batch(sums, signal, models["none"], entries, images)
        totals = sums.reduce(ranks)
        _check_totals(totals, signal, name, precision)
        speeds = _speeds(ranks, entries, first, rounds)
    if ranks.rank > 0:
        return None
    assert first is not None, "rank 0 has timed it"
    samples = int(totals[SAMPLES])
    points = [
        _point(
            entry, first[:1], {m: float(totals[f"{i}/{m}"]) / samples for m in signal.metric_units}, speeds[i]
        )
        for i, entry in enumerate(entries)
    ]
    conditions = _conditions(name, split, device, precision) | {
        "signal": signal.kind,
        "samples": samples,
        "batch": len(first),
        "pixels": list(first.shape[-2:]),
        "timed": "of the blocks, without the head",
        "schedules": list(schedules),
    }
    return Sweep(TASK, signal.metric_units, points[0], points[1:], conditions)


def _add_batch(
    sums: TallySums, signal: Signal, unmerged: MergingModel, entries: Sequence[Entry], images: Tensor
) -> None:
    """Adds how each entry agrees with the unmerged model on these images."""
    whole = signal.read(unmerged, signal.encode(unmerged, images))
    sums.add({SAMPLES: torch.full((), len(images), device=images.device)})
    for i, entry in enumerate(entries):
        merged = signal.read(entry.model, signal.encode(entry.model, images, reduction=entry.schedule))
        found = signal.compare(merged, whole).items()
        sums.add({f"{i}/{metric}": values.sum() for metric, values in found})


def _check_totals(totals: Mapping[str, Tensor], signal: Signal, name: str, precision: str) -> None:
    """Raises ConfigError where no images were counted, or none by rank 0, or nothing can agree with the
    unmerged model."""
    if not totals:
        raise ConfigError("none of the held-out pictures can be read")
    if TIMED not in totals:
        raise ConfigError("none of the pictures of the first process can be read; start fewer processes")
    if not all(bool(totals[f"0/{metric}"].isfinite()) for metric in signal.metric_units):
        raise ConfigError(
            f"the {signal.kind} of {name} are not finite under {precision}, or all are zero, so nothing "
            "can agree with them; give other weights, or --precision fp32"
        )


def _conditions(name: str, split: str, device: torch.device, precision: str) -> dict[str, Any]:
    """What a sweep says of its making, but for what its batches say."""
    return {
        "runs": [name],
        "digests": [],
        "split": split,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "torch": torch.__version__,
        "targets": MACS,
        "within": 1.0,
        "missing": 0,
    }


def _entries(
    models: Mapping[str, MergingModel],
    targets: Sequence[float],
    schedules: Sequence[str],
    solve: Solve | None,
    image: Tensor,
) -> list[Entry]:
    """The points to measure, the unmerged model first. A share that a policy cannot reach is left out with a
    warning."""
    counted_for(models["none"], image)
    found = [Entry("none", 0, "", models["none"], [0] * len(models["none"].merging_blocks))]
    wanted = [(policy, kind) for policy in models if policy != "none" for kind in dict.fromkeys(schedules)]
    for policy, kind in wanted:
        model = models[policy]
        counted = counted_for(model, image)
        for target in targets:
            try:
                if kind == SOLVED:
                    assert solve is not None, "who asks for solved schedules says by what"
                    reached = solve(policy, counted, target)
                else:
                    reached = counted.reduction_for(target, within=WITHIN[kind])
                found.append(Entry(policy, target, kind, model, reached))
            except ConfigError as err:
                warn(log, "%s is left out at %s: %s", policy, target, err)
    if len(found) == 1 and len(models) > 1:
        raise ConfigError("no policy can be run at any of the asked points: see the reasons above")
    return found


def _speeds(ranks: Ranks, entries: Sequence[Entry], images: Tensor | None, rounds: int) -> list[list[float]]:
    """Images per second of each entry's blocks, one value per round; see `turns`. Entries take turns."""
    found: list[list[float]] = [[] for _ in entries]
    for turn in turns(ranks, range(rounds + 1 if rounds else 0)):
        for own, entry in zip(found, entries, strict=True):
            if ranks.rank > 0 or images is None:
                continue
            start = now(images.device)
            entry.model.encode(images, reduction=entry.schedule)
            if turn:
                own.append(len(images) / (now(images.device) - start))
    return found


def _point(entry: Entry, image: Tensor, scores: Mapping[str, float], speed: list[float]) -> Point:
    counted = counted_for(entry.model, image)
    schedule = counted.schedule(entry.schedule)
    macs = counted.macs(schedule)
    return Point(
        policy=entry.policy,
        target=entry.target,
        kind=entry.kind,
        schedule=schedule,
        tokens=macs.tokens,
        macs=macs.total,
        metric_macs=sum(macs.metric),
        head_macs=0,
        scores={metric: [value] for metric, value in scores.items()},
        images_per_s=speed,
        encoder_images_per_s=speed,
    )
