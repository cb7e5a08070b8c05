"""Lines that describe a run at its start, so that a wrong device, batch or mode is seen at once."""

import os
from collections.abc import Collection, Mapping

import torch

from pipeline.backbone.macs import count_macs
from pipeline.model import MultiTaskModel, training_grid
from pipeline.plan.resolve import ResolvedRun
from pipeline.ranks import Ranks


def model_lines(
    resolved: ResolvedRun, model: MultiTaskModel, trained: Collection[str], num_samples: Mapping[str, int]
) -> list[str]:
    """Lines about the parameters, and about the batch, the epochs and the MACs of one image of each task.
    Called before an engine partitions the parameters.

    trained: names of the trained parameters. num_samples: training samples of each fed task.
    """
    config = resolved.config
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total, learning = _short(sum(sizes.values())), _short(sum(sizes[name] for name in trained))
    lines = [
        f"model: {config.backbone.name}, {total} parameters, {learning} trained (train.mode "
        f"{config.train.mode})"
    ]
    return lines + [_task_line(resolved, model, name, num_samples.get(name, 0)) for name in config.tasks]


def _task_line(resolved: ResolvedRun, model: MultiTaskModel, name: str, num_samples: int) -> str:
    task = resolved.config.tasks[name]
    assert task.data.img_size is not None, "the model's own size was filled in"
    height, width = task.data.size
    grid = training_grid(model.backbone, task)
    whole, merged = (
        count_macs(model.backbone, grid, reduction).total for reduction in (0, model.reduction_of(name))
    )
    cost = (
        f"backbone {_short(merged)} MACs per image of {height}x{width}, {100 * merged / whole:.3g} % "
        f"of {_short(whole)} unmerged"
    )
    if name not in resolved.global_batch:
        return f"{name}: frozen; {cost}"
    micro, batch = resolved.micro_batches[name], resolved.global_batch[name]
    epochs = (resolved.total_steps or 0) * resolved.shares[name] * batch / num_samples
    parts = f"{task.data.batch_size} a rank x {resolved.world_size} ranks x {micro} accumulated"
    views = f" x {task.data.views} views" if task.data.views > 1 else ""
    return f"{name}: batch {batch}{views} ({parts}), {epochs:.3g} epochs of {num_samples} samples; {cost}"


def run_lines(resolved: ResolvedRun, ranks: Ranks) -> list[str]:
    """Lines about device, engine, length and output."""
    config = resolved.config
    kind = config.engine.type
    kind += f", ZeRO {config.engine.zero_stage}" if kind == "deepspeed" else ""
    compiled = {"none": "", "model": ", compiled", "blocks": ", compiled by block"}[config.engine.compile]
    return [
        f"device: {_device(ranks.device)}; ranks: {ranks.world_size}; engine: {kind}, "
        f"{config.engine.precision}{compiled}",
        f"steps: {resolved.total_steps}; output: {config.output}",
    ]


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    why = (
        "as DS_ACCELERATOR says"
        if os.environ.get("DS_ACCELERATOR") == "cpu" and torch.cuda.is_available()
        else "no GPU was found"
    )
    return f"CPU ({why}, {torch.get_num_threads()} threads a rank)"


def _short(number: int) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
