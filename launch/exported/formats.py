"""Export formats of a model: weights under timm's names, or a program that maps images of the training crop's
size to logits."""

import io
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from launch.exported.exporting import exporting
from launch.exported.tensors import write_tensors
from launch.saved.run import SavedRun
from pipeline.backbone.adapters.embeddings import SUFFIX
from pipeline.backbone.block import MergingBlock
from pipeline.backbone.build import BACKBONES
from pipeline.backbone.macs import count_macs
from pipeline.backbone.metric import EmbeddingPerTask, MetricEmbedding
from pipeline.backbone.rotary import RotaryRule
from pipeline.backbone.vit import MergingViT
from pipeline.config.reduction_schema import Reduction
from pipeline.config.schema import DataConfig
from pipeline.errors import ConfigError
from pipeline.extras import require
from pipeline.merging.schedule import plain_reduction
from pipeline.model import MultiTaskModel, training_grid
from pipeline.token_state import BackboneOutput

CARD, CONFIG = "model.json", "config.json"
CARDS = (CONFIG, CARD)
"""What is said of an export beside its file."""


@runtime_checkable
class GivesLogits(Protocol):
    """A task with a method `logits`."""

    def logits(self, output: BackboneOutput) -> Tensor: ...


class Program(nn.Module):
    """A task's inference: images [B, 3, H, W], or clips, normalised -> logits [B, K] or [B, K, h, w]."""

    def __init__(self, model: MultiTaskModel, task: str):
        """Raises ConfigError for a task that does not end in logits."""
        super().__init__()
        head = model.tasks[task]
        if not isinstance(head, GivesLogits):
            raise ConfigError(
                f"task '{task}' is not a function from images to logits; use --format safetensors"
            )
        self.backbone, self.head = model.backbone, head
        self._encode = partial(model.encode, task, relaxed=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head.logits(self._encode(images))


def fold_embeddings(model: MultiTaskModel, task: str) -> None:
    """Replaces each block's metric embedding by the one linear layer that it is for the task."""
    for block in list(model.backbone.modules()):
        if isinstance(block, MergingBlock) and isinstance(block.metric, MetricEmbedding | EmbeddingPerTask):
            folded = block.metric.fold(task)
            width, channels = folded["weight"].shape
            block.metric = MetricEmbedding(channels, width)
            block.metric.load_state_dict(
                {name: tensor.detach() for name, tensor in folded.items()}, assign=True
            )


def timm_state_dict(model: MultiTaskModel, task: str) -> dict[str, Tensor]:
    """State of the backbone and the task's head under timm's names; metric embeddings are
    blocks.N.metric.{weight,bias}."""
    parts = (model.backbone, model.tasks[task])
    return {
        name: tensor.detach().contiguous() for part in parts for name, tensor in part.state_dict().items()
    }


def write_safetensors(run: SavedRun, model: MultiTaskModel, task: str, path: Path) -> None:
    """Writes the tensors, and as metadata the grid of the position embedding, which `load_weights` reads. A
    backbone of clips has fixed positions, which no file holds."""
    notes = {_whose(run): run.config.backbone.name}
    if not model.backbone.reads_clips:
        notes["grid"] = "{}x{}".format(*model.backbone.grid)
    with exporting(path, CARDS) as part:
        write_tensors(part, timm_state_dict(model, task), notes)


def write_pt2(run: SavedRun, model: MultiTaskModel, task: str, path: Path) -> None:
    """Writes a program for torch.export.load, which runs without this project. Raises ConfigError."""
    program, images = _program(run, model, task)
    exported = torch.export.export(program, (images,), dynamic_shapes=(_batch_shape(),))
    content = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
    torch.export.save(exported, content)
    with exporting(path, CARDS) as part:
        part.write_bytes(content.getbuffer())


def write_onnx(run: SavedRun, model: MultiTaskModel, task: str, path: Path) -> None:
    """Writes a program for onnxruntime and others. Raises ConfigError."""
    for package in ("onnx", "onnxscript"):
        require("onnx", package)
    program, images = _program(run, model, task)
    try:
        exported = torch.onnx.export(
            program,
            (images,),
            dynamo=True,
            dynamic_shapes=(_batch_shape(),),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as err:
        raise ConfigError(
            f"torch cannot export this model to ONNX ({str(err).splitlines()[0]:.200}); give --format pt2"
        ) from err
    assert exported is not None, "that of dynamo"
    with exporting(path, CARDS) as part:
        exported.save(part)


WRITERS: dict[str, Callable[[SavedRun, MultiTaskModel, str, Path], None]] = {
    "safetensors": write_safetensors,
    "pt2": write_pt2,
    "onnx": write_onnx,
}


def model_card(run: SavedRun, model: MultiTaskModel, task: str, form: str, policy: str) -> dict[str, Any]:
    """Plain data with all that a user of the file has to know."""
    backbone, data, facts = run.config.backbone, run.config.tasks[task].data, run.facts
    grid = training_grid(model.backbone, run.config.tasks[task])
    macs = count_macs(model.backbone, grid, model.reduction_of(task))
    return {
        "format": form,
        "task": task,
        "architecture": {_whose(run): backbone.name, "img_size": backbone.img_size}
        | ({"frames": backbone.frames, "tubelet": backbone.tubelet} if backbone.frames > 1 else {})
        | backbone.options,
        "head": {"task": run.config.tasks[task].type, **run.config.tasks[task].head},
        "input": {"pixels": data.img_size}
        | asdict(data.augment.preprocessing)
        | {"resize": _resize_rule(data)}
        | _frames_of(data, clips=model.backbone.reads_clips),
        "classes": run.classes(task),
        "merging": {
            "policy": policy,
            "schedule": model.schedule(task, grid),
            "tokens_after_each_block": macs.tokens,
            "backbone_macs": macs.total,
        },
        "weights": {
            "from": str(run.folder),
            "step": facts["step"],
            "averaged": run.averaged,
            "config_digest": facts["digest"],
        },
        "made_with": {"commit": facts["commit"], **facts["versions"]},
    }


def _whose(run: SavedRun) -> str:
    """Whose name the backbone has."""
    return "backbone" if run.config.backbone.name in BACKBONES.names() else "timm"


def _frames_of(data: DataConfig, *, clips: bool) -> dict[str, Any]:
    """How many frames of a video a clip has, and which, in words; nothing of images."""
    if not clips:
        return {}
    if data.stride is None:
        which = "the middle one of each of as many equal parts of the video"
    else:
        which = f"one of every {data.stride}, from the middle of the video"
    return {"frames": data.num_frames, "which": which}


def _resize_rule(data: DataConfig) -> str:
    """The way in which evaluation resizes and crops an image, in words."""
    if data.schema == "segmentation":
        short = data.augment.short_side
        return f"shorter side to {short} pixels, no crop" if short else "as stored, no crop"
    if data.augment.preprocessing.crop_mode == "squash":
        return "each side of the image to that of the input, floor(side / crop_pct); centre crop"
    return "each side of the input to floor(side / crop_pct), the image's shorter side to it; centre crop"


def timm_config(run: SavedRun, model: MultiTaskModel, task: str) -> dict[str, Any] | None:
    """config.json beside model.safetensors, with the keys that timm's own `save_for_hf` writes.
    `timm.create_model("local-dir:FOLDER", pretrained=True)` builds the model from it, and so does
    `hf-hub:USER/NAME` once the folder is on the hub. One that merges has a name that `import dtem` registers.
    None for a task whose head is not that of a timm classifier, for clips, which timm does not read, and for
    a backbone that is none of timm's."""
    if not isinstance(model.backbone, MergingViT):
        return None
    backbone, data, head = run.config.backbone, run.config.tasks[task].data, run.config.tasks[task].head
    own_pool = head.get("pool") in (None, model.backbone.global_pool)
    if run.config.tasks[task].type != "classification" or not own_pool or model.backbone.reads_clips:
        return None
    (rows, columns), (patch_h, patch_w) = model.backbone.grid, model.backbone.patch_size
    made_for = [rows * patch_h, columns * patch_w]
    classes = run.classes(task)
    classifier = "head" if model.backbone.dist_token is None else ["head", "head_dist"]
    wanted, merging = data.augment.preprocessing, _merging_of(model, task)
    return {
        "architecture": backbone.name.partition(".")[0] + (SUFFIX if merging else ""),
        "num_classes": head["num_classes"],
        "num_features": model.backbone.embed_dim,
        "global_pool": model.backbone.global_pool,
        **({"label_names": classes} if classes else {}),
        "model_args": {
            **backbone.options,
            "in_chans": 3,
            "num_classes": head["num_classes"],
            "global_pool": model.backbone.global_pool,
            "img_size": made_for,
            "dynamic_img_size": made_for != list(data.size),
            # timm's model has no place for the metric embeddings
            "pretrained_strict": False,
            **merging,
        },
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, *data.size],
            "fixed_input_size": made_for == list(data.size),
            **asdict(wanted),
            "num_classes": head["num_classes"],
            "first_conv": "patch_embed.proj",
            "classifier": classifier,
            "pool_size": None,
        },
    }


def _merging_of(model: MultiTaskModel, task: str) -> dict[str, Any]:
    """Arguments of timm's name of the merging model, without those that have their default."""
    backbone = model.backbone
    if not isinstance(backbone, MergingViT) or not backbone.policy.merges:
        return {}
    given: dict[str, Any] = {"policy": backbone.policy.name, "reduction": reduction_of(model, task)}
    if backbone.policy.options:
        given["policy_options"] = dict(backbone.policy.options)
    if backbone.proportional_attention != "always":
        given["proportional_attention"] = backbone.proportional_attention
    if backbone.rope is not None and backbone.rotary_rule != RotaryRule():
        given |= {"rotary": backbone.rotary_rule.name, "rotary_bias": backbone.rotary_rule.bias}
    return given


def reduction_of(model: MultiTaskModel, task: str) -> Reduction:
    """The reduction of a task as a configuration has it."""
    own = model.reduction_of(task)
    return plain_reduction(model.backbone.reduction if own is None else own, model.backbone.depth)


def _program(run: SavedRun, model: MultiTaskModel, task: str) -> tuple[Program, Tensor]:
    """The program and an example of its input. Raises ConfigError for a task that does not end in logits."""
    shape = model.backbone.input_shape(run.config.tasks[task].data.size)
    return Program(model, task).eval(), torch.zeros(2, *shape)


def _batch_shape() -> dict[int, Any]:
    return {0: torch.export.Dim("batch", min=1, max=4096)}
