"""A lesson: what is asked of `dtem teach`, and the model, the signal and the pictures that it takes."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launch.published.batches import training_batches
from launch.published.merged import counted_for, merged_model
from launch.published.pictures import Pictures, divided
from launch.published.signal import signal_of
from launch.teach.loop import Teaching
from launch.teach.result import check_out
from pipeline.backbone.macs import Counted
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.published import Published
from pipeline.engine import launched
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.merging.policies import POLICIES
from pipeline.objectives.signal import Signal

CROP = (0.25, 1.0)
"""Range of the area of the crops that are learned from."""


@dataclass(frozen=True)
class Order:
    """What is asked for. signal: None takes the first that the model has. macs: shares at which the result is
    measured; none leaves the curve out. options: of the policy. Raises ConfigError."""

    data: str
    out: Path
    how: Teaching
    policy: str
    signal: str | None
    macs: Sequence[float]
    batch_size: int
    workers: int
    device: torch.device
    precision: str
    license: str | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not POLICIES.build(self.policy, **self.options).embeds:
            raise ConfigError(
                f"policy '{self.policy}' learns nothing that can be taught alone; give one with a metric "
                "embedding, such as 'dtem'"
            )
        if self.batch_size < 1 or self.workers < 0:
            raise ConfigError(
                f"--batch-size is {self.batch_size} and --workers {self.workers}; give at least 1 and 0"
            )
        if (processes := launched.world_size()) > 1:
            raise ConfigError(f"teaching runs in one process, and a launcher started {processes}; start one")
        check_out(self.out)


@dataclass(frozen=True)
class Lesson:
    """model: merges by the order's policy, on its device. counted: of it, for one image. learned_from,
    held_out: numbers of the pictures."""

    order: Order
    pictures: Pictures
    published: Published
    model: MergingModel
    signal: Signal
    counted: Counted
    learned_from: Sequence[int]
    held_out: Sequence[int]

    def stream(self, batch_size: int, workers: int) -> Generator[Batch, None, None]:
        """Batches to learn from, without end."""
        return training_batches(
            self.pictures,
            self.learned_from,
            self.published.size,
            self.published.pixels,
            batch_size=batch_size,
            seed=self.order.how.seed,
            workers=workers,
            crop_scale=CROP,
        )


def lesson_of(order: Order, pictures: Pictures, published: Published) -> Lesson:
    """Raises PipelineError where the model has no such signal, or the pictures are too few."""
    signal = signal_of(published, order.signal)
    learned_from, held_out = divided(len(pictures), published.size)
    how = order.how
    base = published.model.to(order.device)
    model = merged_model(base, order.policy, how.reduction, seed=how.seed, options=order.options)
    image = torch.zeros(1, 3, *published.size, device=order.device)
    counted = counted_for(model, image)
    return Lesson(order, pictures, published, model, signal, counted, learned_from, held_out)
