"""Solved and learned schedules of a published model, by its signal on pictures without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from launch.measure.learning import steps_with_bar
from launch.measure.points import LEARNED
from launch.measure.solving import Solving, solved_with_bar
from launch.published.pictures import Pictures, find_pictures
from pipeline.backbone.learned_schedule import Loss, check_ranks, learned_schedule
from pipeline.backbone.macs import Counted
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.policies_of_blocks import policy_of
from pipeline.backbone.solved_schedule import Measure, ScheduleSolver
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.objectives.signal import LOGITS, Signal
from pipeline.rng import generator


@dataclass(frozen=True)
class Apart:
    """Pictures to solve on, by number, and the numbers of those of the reported set that are none of them.
    told: what a sweep says of them."""

    pictures: Pictures
    numbers: Sequence[int]
    reported: Sequence[int]
    told: Mapping[str, Any]


def apart_from(reported: Pictures, name: str, solving: Solving) -> Apart:
    """Pictures to solve on, drawn from the seed: of their own source, or some of the reported set, which then
    lacks them. name: of that set. Raises ConfigError where they would be the same, or are too few."""
    solving.check()
    pictures = reported if solving.source is None else find_pictures(solving.source)
    if solving.source is not None:
        _refuse_shared(reported, pictures, solving.source)
    count, images = len(pictures), solving.images
    if solving.source is None and count < 2 * images:
        raise ConfigError(
            f"schedules are solved on {images} pictures, which are not reported on, and there are {count} in "
            f"all; give --solve-images {max(1, count // 4)}, or --solve-on others"
        )
    drawn = torch.randperm(count, generator=generator(solving.seed, "solve")).tolist()[:images]
    taken = set(drawn) if solving.source is None else set()
    rest = [number for number in range(len(reported)) if number not in taken]
    told = asdict(solving) | {"source": solving.source or name, "images": len(drawn)}
    return Apart(pictures, sorted(drawn), rest, told)


def _refuse_shared(reported: Pictures, pictures: Pictures, source: str) -> None:
    """Raises ConfigError where pictures to solve on are reported on as well. source: of the former."""
    shared = sorted(reported.files & pictures.files)
    if shared or pictures.digest == reported.digest:
        told = f", {shared[0]} for instance" if shared else ""
        raise ConfigError(
            f"of --solve-on {source} some are the pictures that are reported on{told}; give others, or leave "
            "it out, and a part of them is solved on and not reported"
        )


def damage_of(
    model: MergingModel,
    unmerged: MergingModel,
    signal: Signal,
    batches: Sequence[Batch],
    device: torch.device,
) -> Measure:
    """Maps r of each block to the mean divergence of the model's logits from the unmerged one's, or, of
    features, to the mean squared error as a share, in float32. Both models are on the device, in evaluation
    mode."""
    metric = _metric(signal)
    exact = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(), exact:
        moved = [batch.to(device).images for batch in batches]
        whole = [signal.read(unmerged, signal.encode(unmerged, images)) for images in moved]

    def measure(schedule: Sequence[int]) -> float:
        total = torch.zeros((), dtype=torch.float64, device=device)
        with torch.inference_mode(), exact:
            for images, wanted in zip(moved, whole, strict=True):
                found = signal.read(model, signal.encode(model, images, reduction=list(schedule)))
                total = total + signal.compare(found, wanted)[metric].sum()
        return float(total) / sum(map(len, moved))

    return measure


def loss_of(
    model: MergingModel,
    unmerged: MergingModel,
    signal: Signal,
    batches: Sequence[Batch],
    device: torch.device,
) -> Loss:
    """The same of one batch after the other, again and again, under a relaxed merge and with gradient."""
    metric = _metric(signal)
    exact = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.no_grad(), exact:
        moved = [batch.to(device).images for batch in batches]
        whole = [signal.read(unmerged, signal.encode(unmerged, images)) for images in moved]
    endless = cycle(zip(moved, whole, strict=True))

    def loss(schedule: Sequence[int]) -> Tensor:
        images, wanted = next(endless)
        with exact:
            merged = signal.encode(model, images, reduction=list(schedule), relaxed=True)
            return signal.compare(signal.read(model, merged), wanted)[metric].mean()

    return loss


def _metric(signal: Signal) -> str:
    return "divergence" if signal.kind == LOGITS else "error"


class Finders:
    """Maps (policy, schedule of FOUND, what its MACs are counted of, share of the MACs) to r of each block,
    and the options of the policy that were found with them; see `damage_of`."""

    def __init__(
        self,
        models: Mapping[str, MergingModel],
        signal: Signal,
        batches: Sequence[Batch],
        device: torch.device,
    ):
        self._models, self._made_of = models, (models["none"], signal, batches, device)
        self._solvers: dict[str, ScheduleSolver] = {}

    def __call__(
        self, policy: str, schedule: str, counted: Counted, share: float
    ) -> tuple[list[int], Mapping[str, Any]]:
        model, label = self._models[policy], f"{policy} at {share:g}"
        if schedule == LEARNED:
            check_ranks(policy_of(model))  # before the unmerged passes
            steps = steps_with_bar(label)
            found = learned_schedule(model, counted, share, loss_of(model, *self._made_of), steps)
            return found.schedule, found.options
        if policy not in self._solvers:
            self._solvers[policy] = ScheduleSolver(counted, damage_of(model, *self._made_of))
        return solved_with_bar(self._solvers[policy], share, label).schedule, {}
