"""How long teaching will take, and in how much memory: by a trial before the first step. B images."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from launch.saved.device import now
from launch.teach.loop import Teaching, learning_embeddings, merge_loss
from pipeline.backbone.macs import Counted
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.engine.model_on_device import autocast
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.objectives.merge_cost import MergeCost
from pipeline.objectives.signal import Signal

TRIED = 2
"""Images of a trial on a CPU, where time grows with their number. A GPU tries a whole batch."""

LOOKED_AT = 256
"""Steps among which the cheapest and the dearest are searched."""


@dataclass(frozen=True)
class Estimate:
    """step, read, forward: seconds in which a batch is learned from, is read, and passes the unmerged model
    once. memory: most bytes on the device; None on a CPU. meanwhile: whether others read while it learns."""

    step: float
    read: float
    forward: float
    memory: int | None
    meanwhile: bool = True

    def seconds(self, steps: int, passes: float) -> float:
        """For all steps with their reading, and for a curve of that many passes of a batch."""
        both = max(self.step, self.read) if self.meanwhile else self.step + self.read
        return steps * both + passes * self.forward

    def __str__(self) -> str:
        parts = [f"{self.step:.2g} s a step"]
        if self.read > self.step:
            parts.append(f"but {self.read:.2g} s to read its pictures, which more --workers shorten")
        if self.memory is not None:
            parts.append(f"{self.memory / 2**30:.1f} GiB of memory at most")
        return ", ".join(parts)


def estimated(
    model: MergingModel,
    signal: Signal,
    how: Teaching,
    counted: Counted,
    *,
    size: tuple[int, int],
    batch_size: int,
    device: torch.device,
    precision: str,
    read: float,
    workers: int,
) -> Estimate:
    """The estimate, from steps on drawn pixels of `size`; the model stays as it is. read: seconds in which
    one process reads a batch. Raises ConfigError where a step does not fit into the device's memory."""
    tried = batch_size if device.type == "cuda" else min(batch_size, TRIED)
    images = torch.randn(tried, 3, *size, device=device)
    embeddings, objective = learning_embeddings(model), MergeCost(pairs=how.pairs)
    most, least = extreme_steps(how, counted, signal.reads_prefix_alone(model))

    def learn(step: int) -> None:
        with autocast(device, precision):
            loss = merge_loss(model, signal, images, how, counted, objective, step)
        loss.backward()
        for parameter in embeddings:
            parameter.grad = None

    def look() -> None:
        with torch.no_grad(), autocast(device, precision):
            signal.read(model, signal.encode(model, images, reduction=0))

    try:
        learn(most)  # it allocates, and chooses kernels
        both = [_timed(partial(learn, step), device) for step in (most, least)]
        forward = _timed(look, device)
    except torch.OutOfMemoryError as err:
        raise ConfigError(
            f"a step of {batch_size} images of {size[0]}x{size[1]} pixels does not fit into the memory of "
            f"{device}; give --batch-size {max(1, batch_size // 2)}, or a smaller --img-size"
        ) from err
    scale = batch_size / tried
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Estimate(
        scale * sum(both) / 2, read / max(1, workers), scale * forward, memory, meanwhile=workers > 0
    )


def extreme_steps(how: Teaching, counted: Counted, prefix_alone: bool) -> tuple[int, int]:
    """Among the first steps the one that draws the earliest block, and so prices most, and the one that draws
    the latest."""
    first = [how.blocks_at(step, counted, prefix_alone)[0] for step in range(LOOKED_AT)]
    return first.index(min(first)), first.index(max(first))


def _timed(act: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done it."""
    start = now(device)
    act()
    return now(device) - start


def time_to_read(batches: Iterator[Batch]) -> float:
    """Seconds in which this process reads an image: of the second batch, as the first one opens files."""
    next(batches)
    start = time.perf_counter()
    read = len(next(batches).images)
    return (time.perf_counter() - start) / read
