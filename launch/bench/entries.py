"""What is timed: the inference of a model, merged and unmerged, for one batch. B images of H x W pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from launch.published.merged import embedded_state, merged_as_asked
from launch.saved.run import SavedRun, build, checked_reduction, only_task
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.published import Published
from pipeline.drawing.sample import unknown_targets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec, resolve_schedule
from pipeline.model import MultiTaskModel

UNMERGED, MERGED = "unmerged", "merged"
Infer = Callable[[], object]


@dataclass(frozen=True)
class Subject:
    """A model to time. infer: (which, images, compiled) -> one inference of these images, where which is
    UNMERGED or MERGED. schedule: tokens that each block of the merged one removes."""

    name: str
    task: str
    policy: str
    schedule: tuple[int, ...]
    size: tuple[int, int]
    infer: Callable[[str, Tensor, bool], Infer]


def of_run(
    run: SavedRun,
    device: torch.device,
    *,
    task: str | None = None,
    policy: str | None = None,
    reduction: ReductionSpec | None = None,
) -> Subject:
    """The whole inference of one task of a run: encoder, head, masks, or captions of full length. policy,
    reduction: None takes the run's. Raises ConfigError where nothing would merge."""
    name, models = only_task(run.config, task), models_of(run, device, policy)
    wanted: dict[str, ReductionSpec | None] = {UNMERGED: 0, MERGED: reduction}
    merged, size = models[MERGED], run.config.tasks[name].data.size
    probe = _batch(merged, name, torch.zeros(1, 3, *size))
    grid = merged.backbone.grid_of_size(merged.tasks[name].input_size(probe))
    if reduction is not None:
        checked_reduction(merged, grid, reduction)
    schedule = _some(merged.schedule(name, grid, reduction))

    def infer(which: str, images: Tensor, compiled: bool) -> Infer:
        model, batch = models[which], _batch(models[which], name, images)
        encode = model.encoder(name, wanted[which])
        encode = torch.compile(encode, dynamic=False) if compiled else encode
        return lambda: model.tasks[name].infer_in_full(encode, batch)

    return Subject(str(run), name, policy or run.config.merging.policy, schedule, size, infer)


def models_of(run: SavedRun, device: torch.device, policy: str | None) -> dict[str, MultiTaskModel]:
    """The run without merging and under a policy, on the device, where they share their weights."""
    there = run.on(device)
    return {UNMERGED: build(there, "none").to(device), MERGED: build(there, policy).to(device)}


def of_published(
    published: Published,
    adapter: Adapter | None,
    device: torch.device,
    *,
    policy: str | None = None,
    reduction: ReductionSpec | None = None,
) -> Subject:
    """The forward of a published model: unmerged it is the library's own. policy, reduction: see
    `merged_as_asked`. Raises ConfigError where nothing would merge."""
    plain = published.model.to(device)
    policy, merged = merged_as_asked(
        plain, published.size, policy=policy, reduction=reduction, adapter=adapter
    )
    embedded = embedded_state(merged, published.size)
    amount = merged.reduction if merged.merging.policy.merges else 0
    schedule = resolve_schedule(amount, len(merged.merging_blocks), embedded.num_active, embedded.num_prefix)
    models: dict[str, nn.Module] = {UNMERGED: plain, MERGED: merged}

    def infer(which: str, images: Tensor, compiled: bool) -> Infer:
        model = models[which]
        call: Any = torch.compile(model, dynamic=False) if compiled else model
        return lambda: call(images)

    return Subject(published.name, "forward", policy, _some(schedule), published.size, infer)


def _some(schedule: Sequence[int]) -> tuple[int, ...]:
    if not any(schedule):
        raise ConfigError(
            "nothing merges, so there is nothing to compare: give --policy and --reduction, such as --policy "
            "tome --reduction 8"
        )
    return tuple(schedule)


def _batch(model: MultiTaskModel, task: str, images: Tensor) -> Batch:
    height, width = images.shape[-2:]
    targets = unknown_targets(model.tasks[task].reads, (height, width), len(images))
    keys = tuple(str(number) for number in range(len(images)))
    return Batch(task, images, targets, keys).to(images.device)
