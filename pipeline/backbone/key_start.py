"""Embeddings that start at the mean over heads of the attention's keys (`merging.options.init="keys"`).
Before they learn, a model merges as by ToMe.

C channels, F of the embedding, G heads of keys, D channels of a head.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from pipeline.backbone.block import KeyLayer, MergingBlock
from pipeline.backbone.metric import MetricEmbedding
from pipeline.errors import ConfigError


def start_embeddings(model: nn.Module, filled: Collection[str] = ()) -> list[str]:
    """Sets the embeddings of all blocks whose policy starts them at the keys, in place, but for those with a
    tensor in `filled`. Returns the keys of what was set. model: a model or its blocks; filled: its keys.

    To be called when the blocks have other weights than before. Raises ConfigError where a block's keys are
    none of an embedding.
    """
    found: list[str] = []
    for place, block in model.named_modules():
        if isinstance(block, MergingBlock) and block.policy.starts_at_keys:
            found += _start(block, f"{place}.metric", filled)
    return found


def _start(block: MergingBlock, place: str, filled: Collection[str]) -> list[str]:
    assert block.metric is not None, "a policy that starts at the keys learns"
    found: list[str] = []
    for name, layer in block.metric.named_modules(prefix=place):
        own = [f"{name}.weight", f"{name}.bias"]
        if isinstance(layer, MetricEmbedding) and not any(key in filled for key in own):
            _fill(layer, *mean_over_heads(block))
            found += own
    return found


@torch.no_grad()
def _fill(layer: MetricEmbedding, weight: Tensor, bias: Tensor) -> None:
    if layer.weight.shape != weight.shape:
        raise ConfigError(
            f"the embedding has {layer.out_features} channels and a head's keys {len(weight)}, so it cannot "
            f"start at them; give embed_dim={len(weight)}, or leave it out"
        )
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def mean_over_heads(block: MergingBlock) -> tuple[Tensor, Tensor]:
    """weight [F, C] and bias [F], F = D: of what the block's attention reads they give the mean over heads of
    its keys, before rotary positions. float32 or wider. Raises ConfigError."""
    keys = block.key_layer()
    if not isinstance(keys, KeyLayer):
        raise ConfigError(
            f"an embedding cannot start at the keys of {type(block).__name__}: {keys}; give init='random', "
            "or policy 'tome'"
        )
    dtype = torch.promote_types(keys.weight.dtype, torch.float32)
    weight = keys.weight.detach().to(dtype).unflatten(0, (-1, block.heads[1])).mean(dim=0)
    if keys.bias is None:
        return weight, weight.new_zeros(len(weight))
    return weight, keys.bias.detach().to(dtype).unflatten(0, (-1, block.heads[1])).mean(dim=0)
