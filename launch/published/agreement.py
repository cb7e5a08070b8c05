"""How merged models agree with the unmerged one, against compute, on pictures without labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from launch.measure.evaluator import turns
from launch.measure.planning import Aims
from launch.measure.points import LeftOut, Point, Sweep, known
from launch.measure.watched import peak_mib
from launch.published.entries import TASK, Entry, Find, Models, entries_of
from launch.published.merged import counted_for
from launch.saved.device import now
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.engine.model_on_device import autocast
from pipeline.errors import ConfigError, StopAsked
from pipeline.interfaces import Batch
from pipeline.objectives.signal import Signal
from pipeline.ranks import Processes, Ranks
from pipeline.train.metrics import TallySums

SAMPLES = "samples"
TIMED = "timed"
"""Images on which rank 0 measures speed. A tally, so that all ranks know whether it has any."""


def agreement(
    models: Models,
    signal: Signal,
    batches: Iterable[Batch],
    aims: Aims,
    *,
    name: str,
    split: str,
    device: torch.device,
    precision: str,
    rounds: int = 0,
    find: Find | None = None,
    seeds: Sequence[int] = (),
    compared: bool = False,
    left_out: Sequence[LeftOut] = (),
    stopping: Callable[[], bool] = lambda: False,
) -> Sweep | None:
    """The metrics of the signal for each policy at each target, as means over the images.

    models: on the device, in evaluation mode. batches: those of this process. name: of the model. split: of
    the images. rounds: timed passes of the first batch; 0 leaves speed out. find: gives the schedules that
    are `solved` or `learned`. seeds: of what the models draw, for the result. compared: also measure the
    memory. left_out: policies that the model refused. Raises StopAsked once `stopping` says so, and
    ConfigError where no target can be reached or there are no images.
    A collective: rank 0 alone measures speed and has the result, which is None on the others.
    """
    ranks, sums = Processes(device), TallySums()
    entries: list[Entry] = []
    unreached: list[LeftOut] = []
    first: Tensor | None = None
    with torch.inference_mode(), autocast(device, precision):
        for batch in batches:
            if stopping():
                raise StopAsked("the measurement was broken off, as asked")
            images = batch.to(device).images
            if first is None:
                first = images
                entries, unreached = entries_of(models, aims, find, signal, images[:1])
                if ranks.rank == 0:
                    sums.add({TIMED: torch.full((), len(images), device=images.device)})
            _add_batch(sums, signal, models["none"][0], entries, images)
        totals = sums.reduce(ranks)
        _check_totals(totals, signal, name, precision)
        speeds = _speeds(ranks, entries, first, rounds)
    if ranks.rank > 0:
        return None
    assert first is not None, "rank 0 has timed it"
    peaks = [_peak(entry, first, device, precision) if compared else None for entry in entries]
    points = [
        _point(entry, first[:1], _scores(totals, i, entry, signal), speeds[i], peaks[i])
        for i, entry in enumerate(entries)
    ]
    conditions = _conditions(name, split, device, precision) | aims.conditions(seeds)
    conditions |= {
        "signal": signal.kind,
        "samples": int(totals[SAMPLES]),
        "batch": len(first),
        "pixels": list(first.shape[-2:]),
        "timed": "of the blocks, without the head",
    }
    return Sweep(TASK, signal.metric_units, points[0], points[1:], conditions, [*left_out, *unreached])


def _scores(
    totals: Mapping[str, Tensor], number: int, entry: Entry, signal: Signal
) -> dict[str, list[float | None]]:
    """Metric -> its mean over the images, for each of the entry's models. number: the entry's."""
    samples, models = int(totals[SAMPLES]), range(len(entry.models))
    return {
        metric: [known(float(totals[f"{number}/{own}/{metric}"]) / samples) for own in models]
        for metric in signal.metric_units
    }


def _add_batch(
    sums: TallySums, signal: Signal, unmerged: MergingModel, entries: Sequence[Entry], images: Tensor
) -> None:
    """Adds how each entry agrees with the unmerged model on these images."""
    whole = signal.read(unmerged, signal.encode(unmerged, images))
    sums.add({SAMPLES: torch.full((), len(images), device=images.device)})
    for i, entry in enumerate(entries):
        for j, model in enumerate(entry.models):
            merged = signal.read(model, signal.encode(model, images, reduction=entry.schedule))
            found = signal.compare(merged, whole).items()
            sums.add({f"{i}/{j}/{metric}": values.sum() for metric, values in found})


def _check_totals(totals: Mapping[str, Tensor], signal: Signal, name: str, precision: str) -> None:
    """Raises ConfigError where no images were counted, or none by rank 0, or nothing can agree with the
    unmerged model."""
    if not totals:
        raise ConfigError("none of the held-out pictures can be read")
    if TIMED not in totals:
        raise ConfigError("none of the pictures of the first process can be read; start fewer processes")
    if not all(bool(totals[f"0/0/{metric}"].isfinite()) for metric in signal.metric_units):
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
        "missing": 0,
    }


def _speeds(ranks: Ranks, entries: Sequence[Entry], images: Tensor | None, rounds: int) -> list[list[float]]:
    """Images per second of each entry's blocks, one value per round; see `turns`. Entries take turns."""
    found: list[list[float]] = [[] for _ in entries]
    for turn in turns(ranks, range(rounds + 1 if rounds else 0)):
        for own, entry in zip(found, entries, strict=True):
            if ranks.rank > 0 or images is None:
                continue
            start = now(images.device)
            entry.models[0].encode(images, reduction=entry.schedule)
            if turn:
                own.append(len(images) / (now(images.device) - start))
    return found


def _peak(entry: Entry, images: Tensor, device: torch.device, precision: str) -> float:
    """The memory of the blocks' pass."""
    with torch.no_grad(), autocast(device, precision):
        return peak_mib(lambda: entry.models[0].encode(images, reduction=entry.schedule), device)


def _point(
    entry: Entry,
    image: Tensor,
    scores: dict[str, list[float | None]],
    speed: list[float],
    peak: float | None,
) -> Point:
    counted = counted_for(entry.models[0], image)
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
        scores=scores,
        images_per_s=speed,
        encoder_images_per_s=speed,
        peak_mib=peak,
        options=entry.options,
    )
