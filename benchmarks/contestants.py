"""What is timed beside one another: timm's model and ours on the same random weights, an inference, a step.
Others' models are in `peers.py`."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import build_backbone, load_weights
from pipeline.data.targets import ClassificationTargets
from pipeline.interfaces import JOINT_STEP, Batch, StepSpec
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask

CLASSES = 1000


def unmerged(name: str) -> nn.Module:
    """timm's own model, random weights."""
    torch.manual_seed(0)
    return timm.create_model(name)


def ours(
    weights: nn.Module,
    name: str,
    *,
    policy: str,
    r: int,
    objective: str = "supervised",
    **policy_options: Any,
) -> MultiTaskModel:
    """Our model with the weights of timm's or of the release's."""
    backbone = build_backbone(name, policy=policy, reduction=r, **policy_options)
    model = MultiTaskModel(
        backbone,
        {"imagenet": ClassificationTask(backbone, num_classes=CLASSES)},
        OBJECTIVES.build(objective),
    )
    load_weights(model, weights.state_dict())
    return model


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    if isinstance(model, MultiTaskModel):
        return model.tasks["imagenet"].logits(model.backbone(images))
    return model(images)


def inference(
    model: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32, *, compiled: bool = False
) -> Callable[[], Tensor]:
    """One call classifies the batch."""
    model.to(images.device).eval()
    forward = torch.compile(logits_of, dynamic=False) if compiled else logits_of

    @torch.no_grad() if compiled else torch.inference_mode()
    def run() -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return forward(model, images)

    return run


def training_step(
    model: nn.Module,
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    only: str = "",
    spec: StepSpec = JOINT_STEP,
) -> Callable[[], Tensor]:
    """One call is a step: forward, backward, AdamW. only: part of the names of what is trained; `metric` is
    modular training. spec: of our models."""
    model.to(images.device).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(only in name)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=1e-4
    )
    labels = torch.arange(len(images), device=images.device) % CLASSES
    batch = Batch("imagenet", images, ClassificationTargets(labels))

    def run() -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            loss = (
                model(batch, spec).loss
                if isinstance(model, MultiTaskModel)
                else F.cross_entropy(model(images), labels)
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run
