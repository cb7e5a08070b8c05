"""What an adapter asks of a model: its blocks that merge, their embeddings, and its name."""

from collections.abc import Sequence
from typing import Any, cast

from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from pipeline.backbone.metric import EmbeddingPerTask, MetricEmbedding
from pipeline.errors import ConfigError

Embedding = MetricEmbedding | EmbeddingPerTask
SUFFIX = "_dtem"
"""What follows the name of timm's architecture in the name of the model that merges."""


def merging_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model between which tokens merge, in order. Raises ConfigError for a model without."""
    blocks = getattr(model, "merging_blocks", None) or getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential | list) or not len(blocks):
        raise ConfigError(f"{architecture_of(model)} has no `blocks`; give a ViT that merges tokens")
    return list(blocks)


def embeddings_of(blocks: Sequence[nn.Module], name: str) -> list[MetricEmbedding]:
    """The embedding of each block, one layer for all tasks. name: of the model, for messages. Raises
    ConfigError where a block has none, or one with a part for each task."""
    layers = [_embedding_of(block, name) for block in blocks]
    for layer in layers:
        if type(layer) is not MetricEmbedding:
            raise ConfigError(
                f"the embeddings of {name} have a part for each task ({type(layer).__name__}), and an "
                "adapter has one for all; give embedding 'shared', or load_weights(model, adapter.tensors)"
            )
    return cast(list[MetricEmbedding], layers)


def folded_embeddings(blocks: Sequence[nn.Module], name: str, task: str | None) -> list[dict[str, Tensor]]:
    """weight [F, C] and bias [F] of the one linear layer that each block's embedding is for a task. Raises
    ConfigError."""
    return [_embedding_of(block, name).fold(task) for block in blocks]


def _embedding_of(block: nn.Module, name: str) -> Embedding:
    layer = getattr(block, "metric", None)
    if not isinstance(layer, MetricEmbedding | EmbeddingPerTask):
        raise ConfigError(
            f"{name} has no metric embedding: its blocks do not merge, or by a policy that does not learn; "
            "give policy='dtem', or another that learns"
        )
    return layer


def architecture_of(model: nn.Module) -> str:
    """timm's name of the model without our suffix; that of its own class where timm did not build it."""
    own = type(model).__name__.removeprefix("Merging")
    return str(pretrained_of(model).get("architecture") or own).removesuffix(SUFFIX)


def hub_name(name: str) -> str | None:
    """Name on the Hugging Face hub of timm's weights of this name; None where timm has none there."""
    known = get_pretrained_cfg(name)
    return None if known is None else known.hf_hub_id


def pretrained_of(model: nn.Module) -> dict[str, Any]:
    """What timm says of a model's weights; empty for a model that timm did not build."""
    known = getattr(model, "pretrained_cfg", None)
    return dict(known) if isinstance(known, dict) else {}
