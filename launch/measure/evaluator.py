"""Evaluation of trained models: exact scores on any number of processes, and speed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING, Logger
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from launch.measure.compute import Entry
from launch.measure.panel import Panel
from launch.saved.device import now
from pipeline.engine import launched
from pipeline.engine.connect import connect
from pipeline.engine.model_on_device import E, ModelOnDevice
from pipeline.interfaces import Batch
from pipeline.ranks import Ranks
from pipeline.token_state import BackboneOutput
from pipeline.train.collective import maximum


def evaluator_of(model: E, precision: str = "fp32") -> ModelOnDevice[E]:
    """An evaluator of the model, after it has connected the processes where a launcher started several. Needs
    no DeepSpeed. Raises ConfigError for a wrong environment."""
    connect()
    return ModelOnDevice(model, precision)


T = TypeVar("T")


@dataclass(frozen=True)
class Speed:
    """Images per second, one value per round: of the whole inference (encoder, head, masks or captions), and
    of its encoder alone."""

    whole: list[float] = field(default_factory=list)
    encoder: list[float] = field(default_factory=list)


def images_per_second(
    evaluator: ModelOnDevice[Panel], entries: Sequence[Entry], batch: Batch, rounds: int
) -> list[Speed]:
    """Speed of each entry, on rank 0; see `turns`. Entries take turns, so that a machine that slows down
    affects all of them."""
    speeds = [Speed() for _ in entries]
    with evaluator.autocast(), torch.inference_mode():
        for turn in turns(evaluator, progress(range(rounds + 1) if rounds else (), "speed")):
            for own, entry in zip(speeds, entries, strict=True) if evaluator.rank == 0 else ():
                seconds, inside = _seconds(evaluator.device, entry, batch)
                if turn > 0:
                    own.whole.append(len(batch.images) / seconds)
                    own.encoder.append(len(batch.images) / inside)
    return speeds


def turns(ranks: Ranks, rounds: Iterable[int]) -> Iterator[int]:
    """The rounds of a measurement of speed, of which the first, number 0, is not counted. A collective: rank
    0 measures, and the others leave it the machine: they sleep in the hosts' group, and hear of each round's
    end, as no wait is without one."""
    for turn in rounds:
        yield turn
        maximum(ranks, turn)


def _seconds(device: torch.device, entry: Entry, batch: Batch) -> tuple[float, float]:
    """Seconds of the batch's inference, and of its encoder."""
    (model, reduction), inside = entry, 0.0
    plain, task = model.encoder(batch.task, reduction), model.tasks[batch.task]

    def encode(images: Tensor) -> BackboneOutput:
        nonlocal inside
        start = now(device)
        output = plain(images)
        inside += now(device) - start
        return output

    start = now(device)
    task.infer(encode, batch)
    return now(device) - start, inside


def progress(items: Iterable[T], label: str) -> "tqdm[T]":
    """The items, with a progress bar on rank 0 where there is a terminal."""
    return tqdm(items, desc=label, leave=False, disable=None if launched.rank() == 0 else True)


def warn(log: Logger, text: str, *values: object) -> None:
    """A warning that each rank would give, once."""
    log.log(WARNING if launched.rank() == 0 else INFO, text, *values)
