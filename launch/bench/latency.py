"""Latency of inferences that take turns, so that a machine that slows down affects all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launch.bench.entries import MERGED, UNMERGED, Infer, Subject
from launch.measure.evaluator import progress
from launch.saved.device import now
from pipeline.engine.model_on_device import autocast
from pipeline.errors import ConfigError
from pipeline.rng import generator

WARM_UP = 3
"""Inferences of each before the first that counts; the first one also compiles."""
MIB = 2**20


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one batch, in each round. peak_mib: the most memory that tensors had on the GPU during
    one inference, weights included; None on a CPU."""

    batch: int
    which: str
    compiled: bool
    milliseconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None

    def at(self, share: float) -> float:
        """The latency that this share of the rounds does not pass, in milliseconds."""
        values = torch.tensor(self.milliseconds, dtype=torch.float64)
        return float(values.quantile(share))

    @property
    def images_per_s(self) -> float:
        return 1000 * self.batch / self.at(0.5)


@torch.no_grad()
def latencies(
    subject: Subject,
    batches: Sequence[int],
    compiles: Sequence[bool],
    *,
    device: torch.device,
    precision: str,
    rounds: int,
) -> list[Latency]:
    """Of each batch size, compiled or not, unmerged and merged. Images are random. Raises ConfigError where
    torch cannot compile the model, or the device has too little memory."""
    found: list[Latency] = []
    with autocast(device, precision):
        for size in batches:
            torch.compiler.reset()  # a graph for each size, and no limit on their number
            shape = (size, 3, *subject.size)
            images = torch.randn(shape, generator=generator(0, "bench", size)).to(device)
            try:
                found += _of_size(subject, images, compiles, device, rounds)
            except torch.cuda.OutOfMemoryError as err:
                raise ConfigError(
                    f"{size} images of {subject.size[0]}x{subject.size[1]} pixels do not fit into the memory "
                    f"of {device}; give smaller --batch-sizes"
                ) from err
    return found


def _of_size(
    subject: Subject, images: Tensor, compiles: Sequence[bool], device: torch.device, rounds: int
) -> list[Latency]:
    calls: dict[tuple[bool, str], Infer] = {
        (compiled, which): subject.infer(which, images, compiled)
        for compiled in compiles
        for which in (UNMERGED, MERGED)
    }
    for key in calls:
        _warm_up(calls[key], key[0], device)
    peaks = {key: _peak(call, device) for key, call in calls.items()}
    times = _in_turns(calls, device, rounds, f"batch {len(images)}")
    return [
        Latency(len(images), which, compiled, times[compiled, which], peaks[compiled, which])
        for compiled, which in calls
    ]


def _warm_up(call: Infer, compiled: bool, device: torch.device) -> None:
    try:
        for _ in range(WARM_UP):
            call()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as err:  # torch's own errors of compilation among them
        if not compiled:
            raise
        reason = str(err).strip().partition("\n")[0]
        raise ConfigError(f"torch cannot compile this model here: {reason}; give --compile off") from err
    now(device)


def _peak(call: Infer, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    call()
    now(device)
    return torch.cuda.max_memory_allocated(device) / MIB


def _in_turns(
    calls: Mapping[tuple[bool, str], Infer], device: torch.device, rounds: int, label: str
) -> dict[tuple[bool, str], list[float]]:
    """Milliseconds of each call in each round. The device is waited for before and behind each one."""
    found: dict[tuple[bool, str], list[float]] = {key: [] for key in calls}
    for turn in progress(range(rounds), label):
        # who comes first takes turns too
        keys = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for key in keys:
            start = now(device)
            calls[key]()
            found[key].append(1000 * (now(device) - start))
    return found


def speed_up(merged: Latency, unmerged: Latency) -> float:
    """Median over rounds of how many times faster the merged model is than the unmerged one, which ran beside
    it."""
    pairs = zip(unmerged.milliseconds, merged.milliseconds, strict=True)
    return float(torch.tensor([whole / part for whole, part in pairs], dtype=torch.float64).median())
