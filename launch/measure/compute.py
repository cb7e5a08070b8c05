"""Work of inference, measured on one batch: the grids of the backbone's inputs, and multiply-accumulates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from launch.saved.reductions import checked_reduction
from pipeline.backbone.macs import count_macs
from pipeline.config.schema import DataConfig
from pipeline.data.stream import build_eval_loader
from pipeline.errors import SampleError
from pipeline.interfaces import Batch
from pipeline.merging.schedule import AnyReduction, ReductionSpec
from pipeline.merging.unmerge import residual_macs
from pipeline.model import MultiTaskModel
from pipeline.token_state import BackboneOutput, Grid

Entry = tuple[MultiTaskModel, AnyReduction]
"""A model in evaluation mode, and its reduction; a function of the grid where images of all sizes merge the
same share."""


def first_batch(task: str, data: DataConfig, split: str = "val", classes: Sequence[str] = ()) -> Batch:
    """The first evaluation batch, the same in every process. classes: see build_eval_loader. Raises
    ConfigError, and SampleError where no sample can be read."""
    loader = build_eval_loader(
        task, replace(data, workers=0), rank=0, world_size=1, split=split, classes=classes
    )
    if (batch := next(iter(loader), None)) is None:
        raise SampleError(
            f"task '{task}': none of the {loader.num_samples} samples of {split} can be read; see `dtem "
            "shards verify`"
        )
    return batch


def first_grid(model: MultiTaskModel, batch: Batch) -> Grid:
    """Grid of the backbone's first input: an image, or a window, padded to whole patches."""
    return model.backbone.grid_of_size(model.tasks[batch.task].input_size(batch))


def first_schedule(model: MultiTaskModel, batch: Batch, reduction: ReductionSpec | None) -> list[int]:
    """r of each block for the first input of a batch. Raises ConfigError where it has too few tokens for the
    reduction."""
    grid = first_grid(model, batch)
    if reduction is not None:
        checked_reduction(model, grid, reduction)
    return list(model.schedule(batch.task, grid, reduction))


@dataclass(frozen=True)
class Workload:
    """MACs per image, as the mean over a batch, with all windows, or with the largest number of words that a
    caption may have. encoder_macs include metric_macs.

    schedule, tokens: r of each block and tokens left after it, for the backbone's first input.
    """

    encoder_macs: int
    metric_macs: int
    head_macs: int
    schedule: tuple[int, ...]
    tokens: tuple[int, ...]


def workload(entry: Entry, batch: Batch) -> Workload:
    """Workload of one inference of the batch. The encoder's MACs are by formula, with those of the grid that
    it restores for unmerging by residual; the head's are counted, as heads differ by task.

    Attention runs without fused kernels, as the counter does not know that of the CPU.
    """
    (model, reduction), inputs, inside, restored = entry, [], 0, 0
    plain, task = model.encoder(batch.task, reduction), model.tasks[batch.task]

    def encode(images: Tensor) -> BackboneOutput:
        nonlocal inside, restored
        inputs.append((len(images), model.backbone.grid_of(images)))
        with FlopCounterMode(display=False) as counter:
            output = plain(images)
        inside += counter.get_total_flops()
        restored += len(images) * residual_macs(output.final)
        return output

    eager, math = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), eager, math, FlopCounterMode(display=False) as counter:
        task.infer_in_full(encode, batch)
    own = [reduction(grid) if callable(reduction) else reduction for _, grid in inputs]
    specs = [model.reduction_of(batch.task, spec) for spec in own]
    counts = [
        (number, count_macs(model.backbone, grid, spec))
        for (number, grid), spec in zip(inputs, specs, strict=True)
    ]
    images = len(batch.images)
    return Workload(
        encoder_macs=(sum(number * count.total for number, count in counts) + restored) // images,
        metric_macs=sum(number * sum(count.metric) for number, count in counts) // images,
        head_macs=(counter.get_total_flops() - inside) // 2 // images,
        schedule=model.schedule(batch.task, inputs[0][1], specs[0]),
        tokens=counts[0][1].tokens,
    )
