"""Weights of a file in timm's own model, with its head."""

from collections.abc import Mapping

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.backbone.vit import MergingViT
from pipeline.backbone.weights.load import load_weights
from pipeline.backbone.weights.report import LoadReport
from pipeline.errors import CheckpointError, ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.shared_tensors import sharing_tensors

HEADS = ("head.", "head_dist.", "fc_norm.", "attn_pool.")
"""Begins of the keys that are none of a backbone's."""


def num_classes_in(tensors: Mapping[str, Tensor]) -> int:
    """Classes of the classifier of a state dict with timm's keys; 0 without one."""
    weight = tensors.get("head.weight")
    return 0 if weight is None else len(weight)


def fill_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> LoadReport:
    """Copies weights, under the keys of any project that `load_weights` knows, into a VisionTransformer or
    Eva of timm, in place; the head's under timm's keys.

    Returns the report of the backbone. Raises ConfigError for a model of another class, and CheckpointError
    for weights that lack a part of the head, and as `load_weights` does.
    """
    if not isinstance(model, VisionTransformer | Eva):
        raise ConfigError(
            f"a file of weights goes into timm's VisionTransformer and Eva, not into {type(model).__name__}; "
            "give a folder that timm's save_for_hf wrote"
        )
    report = load_weights(MergingViT(sharing_tensors(model), POLICIES.build("none")), tensors)
    own = {key: value for key, value in model.state_dict().items() if key.startswith(HEADS)}
    for key, value in own.items():
        if key not in tensors or tensors[key].shape != value.shape:
            raise CheckpointError(
                f"the weights have no {key} of shape {list(value.shape)}, which the model's head needs; give "
                "weights of this model"
            )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])
    return report
