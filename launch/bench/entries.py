"""What is timed: the inference of a model, merged and unmerged, for one batch. B images of H x W pixels."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from launch.published.merged import counted_for, merged_as_asked, merged_model
from launch.saved.reductions import checked_reduction, measured_reduction
from launch.saved.run import SavedRun, build, only_task
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.auto_reduction import Auto, paying_reduction
from pipeline.backbone.compiled import Compiled, compile_backbone
from pipeline.backbone.macs import count_macs
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.published import Published
from pipeline.drawing.sample import unknown_targets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel

UNMERGED, MERGED = "unmerged", "merged"
Infer = Callable[[], object]


Reductions = Mapping[str, ReductionSpec | Auto | None]
"""Label -> a reduction; None takes the model's own."""
OWN: Reductions = {MERGED: None}
Asked = Reductions | Callable[[int, int], Reductions]
"""Reductions, or a function of the number of blocks and of patches that gives such."""


@dataclass(frozen=True)
class Subject:
    """A model to time. infer: (label, images, how) -> one inference of these images, compiled as `how`, one
    of `pipeline.backbone.compiled.COMPILES`.

    The labels are those of the reductions, behind UNMERGED. schedules: tokens that each block removes. macs:
    MACs of one image through the encoder. shape: of one, [3, H, W], or of a clip, [T, 3, H, W]. paying:
    (label, images at once) -> r of each block, of the reduction's merges those that pay on the device.
    """

    name: str
    task: str
    policy: str
    schedules: Mapping[str, tuple[int, ...]]
    macs: Mapping[str, int]
    shape: tuple[int, ...]
    infer: Callable[[str, Tensor, str], Infer]
    paying: Callable[[str, int], list[int]]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.shape[-2], self.shape[-1]

    @property
    def schedule(self) -> tuple[int, ...]:
        return self.schedules[MERGED]


def of_run(
    run: SavedRun,
    device: torch.device,
    *,
    task: str | None = None,
    policy: str | None = None,
    reductions: Asked = OWN,
) -> Subject:
    """The whole inference of one task of a run: encoder, head, masks, or captions of full length. policy:
    None takes the run's. Raises ConfigError where nothing would merge."""
    name, there = only_task(run.config, task), run.on(device)
    models = cache(lambda how: models_of(there, device, policy, how))
    merged, size = models("none")[MERGED], run.config.tasks[name].data.size
    shape = merged.backbone.input_shape(size)
    probe = _batch(merged, name, torch.zeros(1, *shape))
    pixels = merged.tasks[name].input_size(probe)
    grid = merged.backbone.grid_of_size(pixels)
    wanted: dict[str, ReductionSpec | None] = {UNMERGED: 0}
    for label, reduction in _labelled(reductions, merged.backbone.depth, math.prod(grid)).items():
        if isinstance(reduction, Auto):
            reduction = measured_reduction(merged, name, pixels, reduction)
        wanted[label] = None if reduction is None else checked_reduction(merged, grid, reduction)
    schedules = {label: merged.schedule(name, grid, reduction) for label, reduction in wanted.items()}
    macs = {label: count_macs(merged.backbone, grid, list(own)).total for label, own in schedules.items()}

    def infer(label: str, images: Tensor, how: str) -> Infer:
        model = models(how)[UNMERGED if label == UNMERGED else MERGED]
        batch, encode = _batch(model, name, images), model.encoder(name, wanted[label])
        return lambda: model.tasks[name].infer_in_full(encode, batch)

    def paying(label: str, batch: int) -> list[int]:
        return measured_reduction(merged, name, pixels, Auto(list(schedules[label]), batch))

    own = policy or run.config.merging.policy
    return Subject(str(run), name, own, _some(schedules), macs, shape, infer, paying)


def models_of(
    run: SavedRun, device: torch.device, policy: str | None, how: str = "none"
) -> dict[str, MultiTaskModel]:
    """The run without merging and under a policy, on the device, where they share their weights, compiled as
    `how`."""
    there = run.on(device)
    found = {UNMERGED: build(there, "none").to(device), MERGED: build(there, policy).to(device)}
    for model in found.values():
        compile_backbone(model.backbone, how, inference=True)
    return found


def of_published(
    published: Published,
    adapter: Adapter | None,
    device: torch.device,
    *,
    policy: str | None = None,
    reductions: Asked = OWN,
) -> Subject:
    """The forward of a published model: unmerged it is the library's own. policy: see `merged_as_asked`.
    Raises ConfigError where nothing would merge."""
    plain, asked = published.model.to(device), ""
    models: dict[str, nn.Module] = {UNMERGED: plain}
    schedules: dict[str, tuple[int, ...]] = {}
    macs: dict[str, int] = {}
    for label, reduction in _labelled(reductions, *_blocks_and_patches(plain, published.size)).items():
        auto = reduction if isinstance(reduction, Auto) else None
        wished = auto.of_published if auto else cast("ReductionSpec | None", reduction)
        asked, merged = merged_as_asked(
            plain, published.size, policy=policy, reduction=wished, adapter=adapter
        )
        if auto:
            merged.reduction = paying_reduction(
                merged, merged.reduction, batch=auto.batch, size=published.size
            )
        counted = counted_for(merged, torch.zeros(1, 3, *published.size, device=device))
        models[label] = merged
        schedules |= {UNMERGED: counted.schedule(0), label: counted.schedule(merged.reduction)}
        macs |= {own: counted.macs(schedules[own]).total for own in (UNMERGED, label)}

    def infer(label: str, images: Tensor, how: str) -> Infer:
        model = models[label]
        if how == "none":
            return lambda: model(images)
        if how == "blocks":
            raise ConfigError(f"{published.name} is compiled as a whole: give --compile model")
        call = Compiled(lambda images: model(images), "model", inference=True)
        return lambda: call(images)

    def paying(label: str, batch: int) -> list[int]:
        model = cast(MergingModel, models[label])
        return paying_reduction(model, list(schedules[label]), batch=batch, size=published.size)

    shape = (3, *published.size)
    return Subject(published.name, "forward", asked, _some(schedules), macs, shape, infer, paying)


def _labelled(asked: Asked, depth: int, patches: int) -> Reductions:
    return asked(depth, patches) if callable(asked) else asked


def _blocks_and_patches(plain: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Of a library's model, for images of (height, width) pixels."""
    model = merged_model(plain, "none", 0, seed=0)
    counted = counted_for(model, torch.zeros(1, 3, *size, device=next(plain.parameters()).device))
    return len(counted.blocks), counted.patches


def _some(schedules: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    if not any(any(schedule) for schedule in schedules.values()):
        raise ConfigError(
            "nothing merges, so there is nothing to compare: give --policy and --reduction, such as --policy "
            "tome --reduction 8"
        )
    return schedules


def _batch(model: MultiTaskModel, task: str, images: Tensor) -> Batch:
    height, width = images.shape[-2:]
    targets = unknown_targets(model.tasks[task].reads, (height, width), len(images))
    keys = tuple(str(number) for number in range(len(images)))
    return Batch(task, images, targets, keys).to(images.device)
