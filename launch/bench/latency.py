"""Latency of inferences that take turns, so that a machine that slows down affects all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launch.bench.entries import Infer, Subject
from launch.measure.evaluator import progress
from launch.measure.watched import MIB, peak_on_gpu, watched
from launch.saved.device import now
from pipeline.backbone.block_times import within_memory
from pipeline.engine.model_on_device import autocast
from pipeline.rng import generator

WARM_UP = 3
"""Inferences of each before the first that counts; the first one also compiles."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one batch, in each round. peak_mib: the most memory that tensors had during one
    inference; on a GPU with weights, on a CPU without, and not compiled. attention: see `Watched`."""

    batch: int
    which: str
    compiled: str
    milliseconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    attention: str = ""

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
    compiles: Sequence[str],
    *,
    device: torch.device,
    precision: str,
    rounds: int,
) -> list[Latency]:
    """Of each batch size, each of `pipeline.backbone.compiled.COMPILES` that is asked for, unmerged and under
    each reduction. Images are random. Raises ConfigError where torch cannot compile the model, or memory is
    too small."""
    found: list[Latency] = []
    with autocast(device, precision):
        for size in batches:
            torch.compiler.reset()  # frees the graphs of the size before
            shape = (size, *subject.shape)
            with within_memory(size, subject.size, device):
                images = torch.randn(shape, generator=generator(0, "bench", size)).to(device)
                found += _of_size(subject, images, compiles, device, rounds)
    return found


def _of_size(
    subject: Subject, images: Tensor, compiles: Sequence[str], device: torch.device, rounds: int
) -> list[Latency]:
    calls: dict[tuple[str, str], Infer] = {
        (compiled, which): subject.infer(which, images, compiled)
        for compiled in compiles
        for which in subject.schedules
    }
    for key in calls:
        _warm_up(calls[key], device)
    seen = {which: watched(subject.infer(which, images, "none")) for which in subject.schedules}
    peaks = {key: peak_on_gpu(call, device) or seen[key[1]].peak / MIB for key, call in calls.items()}
    times = _in_turns(calls, device, rounds, f"batch {len(images)}")
    return [
        Latency(
            len(images),
            which,
            compiled,
            times[compiled, which],
            peaks[compiled, which],
            seen[which].attention,
        )
        for compiled, which in calls
    ]


def _warm_up(call: Infer, device: torch.device) -> None:
    for _ in range(WARM_UP):
        call()
    now(device)


def _in_turns(
    calls: Mapping[tuple[str, str], Infer], device: torch.device, rounds: int, label: str
) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of each call in each round. The device is waited for before and behind each one."""
    found: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for turn in progress(range(rounds), label):
        # who comes first takes turns too
        keys = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for key in keys:
            start = now(device)
            calls[key]()
            found[key].append(1000 * (now(device) - start))
    return found


def speed_ups(merged: Latency, unmerged: Latency) -> list[float]:
    """How many times faster the merged model is than the unmerged one, which ran beside it, in each round."""
    pairs = zip(unmerged.milliseconds, merged.milliseconds, strict=True)
    return [whole / part for whole, part in pairs]
