"""Weights of a file in timm's own model, with its head."""

from collections.abc import Mapping

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.backbone.vit import MergingViT
from pipeline.backbone.weights.dialects import translated
from pipeline.backbone.weights.keys import plain_key
from pipeline.backbone.weights.load import load_weights
from pipeline.backbone.weights.report import LoadReport
from pipeline.errors import CheckpointError, ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.shared_tensors import sharing_tensors

HEADS = ("head.", "head_dist.", "fc_norm.", "attn_pool.")
"""Begins of the keys that are none of a backbone's."""


def num_classes_in(tensors: Mapping[str, Tensor], model: VisionTransformer | Eva) -> int:
    """Classes of the classifier of a state dict, under the keys of any project that `load_weights` knows; 0
    without one. model: timm's, with these weights or others. Raises CheckpointError."""
    return _num_classes(_head_in(tensors, _backbone_of(model)))


def fill_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> LoadReport:
    """Copies weights, under the keys of any project that `load_weights` knows, into a VisionTransformer or
    Eva of timm, in place. Its head gets the classes that the weights have.

    Returns the report of the backbone. Raises ConfigError for a model of another class, and CheckpointError
    for weights that lack a part of the model, and as `load_weights` does.
    """
    if not isinstance(model, VisionTransformer | Eva):
        raise ConfigError(
            f"a file of weights goes into timm's VisionTransformer and Eva, not into {type(model).__name__}; "
            "give a folder that timm's save_for_hf wrote"
        )
    backbone = _backbone_of(model)
    given = _head_in(tensors, backbone)
    model.reset_classifier(_num_classes(given))
    own = {key: value for key, value in model.state_dict().items() if key.startswith(HEADS)}
    for key, value in own.items():
        if key not in given or given[key].shape != value.shape:
            raise _lacking(key, value)
    report = load_weights(backbone, tensors)
    for key in report.missing:
        raise _lacking(key, backbone.state_dict()[key])
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(given[key])
    return report


def _backbone_of(model: VisionTransformer | Eva) -> MergingViT:
    """The model without its head, as a backbone of the same tensors."""
    return MergingViT(sharing_tensors(model), POLICIES.build("none"))


def _head_in(tensors: Mapping[str, Tensor], backbone: MergingViT) -> dict[str, Tensor]:
    """What a state dict has behind the backbone, under timm's keys."""
    given = {plain_key(key): value for key, value in translated(tensors, backbone).items()}
    return {key: value for key, value in given.items() if key.startswith(HEADS)}


def _num_classes(head: Mapping[str, Tensor]) -> int:
    weight = head.get("head.weight")
    return 0 if weight is None or weight.ndim == 0 else len(weight)


def _lacking(key: str, value: Tensor) -> CheckpointError:
    return CheckpointError(
        f"the weights have no {key} of shape {list(value.shape)}, which the model needs; give weights of "
        "this model"
    )
