"""A merge adapter: the metric embeddings of all blocks alone, for a model that somebody has already.

C channels of a token, F of an embedding.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone.adapters.config import AdapterConfig
from pipeline.backbone.adapters.digest import base_digest
from pipeline.backbone.adapters.embeddings import architecture_of, embeddings_of, merging_blocks
from pipeline.backbone.metric import MetricEmbedding
from pipeline.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Adapter:
    """An adapter whose tensors fit what it says. Raises CheckpointError where they do not."""

    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    """`blocks.N.metric.{weight,bias}`: [F, C] and [F] of each block. `load_weights` takes them too."""

    def __post_init__(self) -> None:
        base = self.config.base
        wanted = shapes_of(base.depth, base.width, self.embedding_width)
        if wrong := sorted(wanted.keys() ^ self.tensors.keys()):
            there = "is not one of an adapter" if wrong[0] in self.tensors else "is missing"
            raise CheckpointError(f"the tensor {wrong[0]} {there} of {base.depth} blocks")
        for key, tensor in self.tensors.items():
            if tuple(tensor.shape) != wanted[key]:
                raise CheckpointError(f"{key} is {tuple(tensor.shape)}; the others need {wanted[key]}")
            if tensor.dtype not in FLOATS or not bool(tensor.isfinite().all()):
                raise CheckpointError(f"{key} holds other values than finite floats")
        if (said := self.config.merging.options.get("embed_dim", None)) not in (None, self.embedding_width):
            raise CheckpointError(
                f"its embed_dim is {said}, and its tensors have {self.embedding_width} rows"
            )

    @property
    def embedding_width(self) -> int:
        """F, by the first tensor that has it."""
        return next((len(tensor) for tensor in self.tensors.values() if tensor.ndim), 0)

    def options_for(self, policy: str) -> dict[str, Any]:
        """Options of the policy that the adapter was taught for. Raises ConfigError for another policy."""
        own = self.config.merging
        if policy != own.policy:
            raise ConfigError(f"the adapter is for policy '{own.policy}'; give it in place of '{policy}'")
        return dict(own.options)

    def apply_to(self, model: nn.Module, *, check_base: bool = True) -> None:
        """Copies the embeddings into the merging blocks of a model, in place.

        check_base: whether the blocks have to be those that the adapter was taught on. False takes a
        fine-tuned model too, with a warning where it differs. Raises ConfigError and CheckpointError, and
        leaves the model as it was, where the adapter does not fit.
        """
        blocks = merging_blocks(model)
        layers = embeddings_of(blocks, architecture_of(model))
        self._check_sizes(layers, architecture_of(model))
        self._check_base(blocks, architecture_of(model), check_base)
        filled = {
            own: self.tensors[f"blocks.{number}.metric.{name}"].to(own.dtype)
            for number, layer in enumerate(layers)
            for name, own in layer.named_parameters()
        }
        if not all(bool(values.isfinite().all()) for values in filled.values()):
            raise CheckpointError(f"the adapter's values are too large for {layers[0].weight.dtype}")
        with torch.no_grad():
            for own, values in filled.items():
                own.copy_(values)

    def _check_sizes(self, layers: Sequence[MetricEmbedding], name: str) -> None:
        base, width = self.config.base, layers[0].in_features
        if (len(layers), width) != (base.depth, base.width):
            raise CheckpointError(
                f"the adapter is for {base}, which has {base.depth} blocks of {base.width} channels; {name} "
                f"has {len(layers)} of {width}: take an adapter of {name}"
            )
        if layers[0].out_features != self.embedding_width:
            raise ConfigError(
                f"the adapter's embeddings have {self.embedding_width} channels and the model's "
                f"{layers[0].out_features}; give the policy the options {self.config.merging.options}, or "
                f"embed_dim={self.embedding_width}"
            )

    def _check_base(self, blocks: Sequence[nn.Module], name: str, check: bool) -> None:
        base, own = self.config.base, base_digest(blocks)
        if own == base.digest:
            return
        differs = f"the adapter was taught on {base}, and this is {name} with other weights ({own[:12]})"
        if check:
            halved = any(tensor.dtype == torch.float16 for block in blocks for tensor in block.parameters())
            first = "patch it in float32 or bfloat16, as float16 rounds otherwise; " if halved else ""
            raise CheckpointError(
                f"{differs}; {first}load the weights of {base.name or base.architecture}, or give "
                "check_base=False for a model that was fine-tuned from them"
            )
        log.warning("%s: measure what it keeps of the scores", differs)


def shapes_of(depth: int, width: int, embedding_width: int) -> dict[str, tuple[int, ...]]:
    """Key of each tensor of an adapter -> its shape."""
    kinds = {"weight": (embedding_width, width), "bias": (embedding_width,)}
    return {
        f"blocks.{number}.metric.{kind}": shape for number in range(depth) for kind, shape in kinds.items()
    }
