"""The models that are timed beside one another, on the same random weights.

The authors' release and ToMe are read from where the caller keeps them; nothing of them is in this
repository.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import build_backbone, load_weights
from pipeline.data.targets import ClassificationTargets
from pipeline.interfaces import Batch
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask

CLASSES = 1000


def unmerged(name: str) -> nn.Module:
    """timm's own model, random weights."""
    torch.manual_seed(0)
    return timm.create_model(name)


def ours(weights: nn.Module, name: str, *, policy: str, r: int, **policy_options: Any) -> MultiTaskModel:
    """Our model with the weights of timm's or of the release's."""
    backbone = build_backbone(name, policy=policy, reduction=r, **policy_options)
    model = MultiTaskModel(
        backbone,
        {"imagenet": ClassificationTask(backbone, num_classes=CLASSES)},
        OBJECTIVES.build("supervised"),
    )
    load_weights(model, weights.state_dict())
    return model


def release(weights: nn.Module, path: str, *, r: int) -> nn.Module:
    """The authors' DTEM; `path` is their file with `patch_deit`."""
    spec = importlib.util.spec_from_file_location("dtem_release", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(1)
    model = module.patch_deit(deepcopy(weights))
    model.update_r(r)
    return model


def tome(weights: nn.Module, folder: str, *, r: int) -> nn.Module:
    """The authors' ToMe; `folder` holds their package `tome`."""
    sys.path.insert(0, str(Path(folder).resolve()))
    model = deepcopy(weights)
    importlib.import_module("tome.patch.timm").apply_patch(model)
    model.r = r
    return model


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    if isinstance(model, MultiTaskModel):
        return model.tasks["imagenet"].logits(model.backbone(images))
    return model(images)


def inference(model: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """One call classifies the batch."""
    model.to(images.device).eval()

    @torch.inference_mode()
    def run() -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return logits_of(model, images)

    return run


def training_step(
    model: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32, *, only: str = ""
) -> Callable[[], Tensor]:
    """One call is a step: forward, backward, AdamW. only: part of the names of what is trained; `metric` is
    modular training."""
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
                model(batch).loss
                if isinstance(model, MultiTaskModel)
                else F.cross_entropy(model(images), labels)
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run
