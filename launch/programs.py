"""Forms in which a model leaves the project: weights under timm's names, or a program from images of the training crop's size to logits."""

import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from launch.restore import SavedRun, grid_of
from pipeline.backbone.metric import MetricEmbedding
from pipeline.errors import ConfigError
from pipeline.merging.macs import count_macs
from pipeline.model import MultiTaskModel


class Program(nn.Module):
    """images [B, 3, H, W], normalised -> the task's logits, [B, K] or [B, K, h, w], under the merge of inference."""

    def __init__(self, model: MultiTaskModel, task: str):
        super().__init__()
        self.backbone, self.head = model.backbone, model.tasks[task]
        self._encode = partial(model.encode, task, relaxed=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head.logits(self._encode(images))


def only_task(run: SavedRun, task: str | None) -> str:
    """The named task, or the run's only one; else ConfigError."""
    names = list(run.config.tasks)
    if task is None and len(names) == 1:
        return names[0]
    if task not in names:
        raise ConfigError(f"give --task, one of {', '.join(names)}")
    return task


def fold_embeddings(model: MultiTaskModel, task: str) -> None:
    """Puts one linear layer, the metric embedding as it is for the task, in place of each block's own."""
    blocks: Any = model.backbone.blocks
    for block in blocks:
        if block.metric is not None:
            folded = block.metric.fold(task)
            width, channels = folded["weight"].shape
            block.metric = MetricEmbedding(channels, width)
            block.metric.load_state_dict({name: tensor.detach() for name, tensor in folded.items()}, assign=True)


def timm_state_dict(model: MultiTaskModel, task: str) -> dict[str, Tensor]:
    """Backbone and the task's head under timm's names; metric embeddings as blocks.N.metric.{weight,bias}."""
    parts = (model.backbone, model.tasks[task])
    return {name: tensor.detach().contiguous() for part in parts for name, tensor in part.state_dict().items()}


def write_safetensors(run: SavedRun, model: MultiTaskModel, task: str, path: Path) -> None:
    save_file(timm_state_dict(model, task), path, metadata={"format": "pt", "timm": run.config.backbone.name})


def write_pt2(run: SavedRun, model: MultiTaskModel, task: str, path: Path) -> None:
    """For torch.export.load; runs without this project."""
    program, images = _program(run, model, task)
    torch.export.save(torch.export.export(program, (images,), dynamic_shapes=(_batch_shape(),)), path)


def write_onnx(run: SavedRun, model: MultiTaskModel, task: str, path: Path) -> None:
    lacking = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError(f"--format onnx needs {' and '.join(lacking)}: pip install {' '.join(lacking)}")
    program, images = _program(run, model, task)
    torch.onnx.export(
        program, (images,), path, dynamo=True, dynamic_shapes=(_batch_shape(),), input_names=["images"], output_names=["logits"]
    )


WRITERS: dict[str, Callable[[SavedRun, MultiTaskModel, str, Path], None]] = {
    "safetensors": write_safetensors,
    "pt2": write_pt2,
    "onnx": write_onnx,
}


def model_card(run: SavedRun, model: MultiTaskModel, task: str, form: str, policy: str) -> dict[str, Any]:
    """What a reader has to know to use the file, as plain data."""
    backbone, data, facts = run.config.backbone, run.config.tasks[task].data, run.facts
    grid = grid_of(run, model, task)
    macs = count_macs(model.backbone, grid, model.reduction_of(task))
    return {
        "format": form,
        "task": task,
        "architecture": {"timm": backbone.name, "img_size": backbone.img_size, **backbone.options},
        "head": {"task": run.config.tasks[task].type, **run.config.tasks[task].head},
        "input": {"pixels": data.img_size} | asdict(data.augment.preprocessing),
        "merging": {
            "policy": policy,
            "schedule": model.schedule(task, grid),
            "tokens_after_each_block": macs.tokens,
            "backbone_macs": macs.total,
        },
        "weights": {"from": str(run.folder), "step": facts["step"], "averaged": run.averaged, "config_digest": facts["digest"]},
        "made_with": {"commit": facts["commit"], **facts["versions"]},
    }


def _program(run: SavedRun, model: MultiTaskModel, task: str) -> tuple[Program, Tensor]:
    """The program and an example of its input. Raises ConfigError for a task that does not end in logits."""
    if not hasattr(model.tasks[task], "logits"):
        kind = run.config.tasks[task].type
        raise ConfigError(f"a task of type '{kind}' is not a function from images to logits; use --format safetensors")
    return Program(model, task).eval(), torch.zeros(2, 3, *run.config.tasks[task].data.size)


def _batch_shape() -> dict[int, Any]:
    return {0: torch.export.Dim("batch", min=1, max=4096)}
