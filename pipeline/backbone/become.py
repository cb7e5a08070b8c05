"""An existing block of a library becomes a merging block by its class alone, and goes back. So its parts and
their names stay the library's."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import nn

from pipeline.backbone.block import MergingBlock
from pipeline.backbone.classes import Host, as_class, bases_of, class_of, label
from pipeline.backbone.metric import EmbeddingPerTask, EmbeddingSpec, MetricEmbedding
from pipeline.backbone.threshold import Threshold
from pipeline.errors import ConfigError
from pipeline.merging.policy import MergePolicy
from pipeline.merging.traits import check_shared

P = TypeVar("P", bound=nn.Module)

HOSTS: dict[type[nn.Module] | str, type[MergingBlock]] = {}
"""Class of a library's block, or `PACKAGE.CLASS` where the package is not imported here -> the merging block
of it, or its host. `pipeline.backbone.hosts` fills it."""


def host(*blocks: type[nn.Module] | str) -> Callable[[type[MergingBlock]], type[MergingBlock]]:
    """Registers the decorated class as the merging block of blocks of a library."""

    def register(merging: type[MergingBlock]) -> type[MergingBlock]:
        HOSTS.update(dict.fromkeys(blocks, merging))
        return merging

    return register


def become_merging(
    block: nn.Module, policy: MergePolicy, embedding: EmbeddingSpec, depth: float = 0.0
) -> MergingBlock:
    """The block itself, as a merging block; what it learns for merging has its device and dtype. depth: the
    share of the model's blocks that lie before this one. Raises ConfigError where there is no host for its
    class, naming it. After an error it is as it was."""
    obstacle = obstacle_of(block)
    if obstacle is not None:
        raise ConfigError(obstacle)
    kind = host_of_block(type(block))
    if issubclass(kind, Host):
        kind = cast(type[MergingBlock], class_of(kind, type(block)))
    merging = as_class(block, kind)
    merging.policy = policy
    merging.metric = merging.reducer = merging.recovery = None
    try:
        check_shared(policy, embedding.kind)
        if policy.embeds:
            merging.metric = _embedding_for(merging, embedding)
        elif policy.masks:
            merging.metric = beside(merging, lambda: Threshold(policy.threshold_at(depth)))
    except BaseException:
        become_plain(merging)
        raise
    return merging


def _embedding_for(block: MergingBlock, embedding: EmbeddingSpec) -> MetricEmbedding | EmbeddingPerTask:
    """A metric embedding with the device and dtype of the block's floats."""
    return beside(
        block, lambda: embedding.build(block.width, block.policy.embedding_dim(block.width, block.heads[1]))
    )


def beside(block: nn.Module, build: Callable[[], P]) -> P:
    """A part that is built for a block, with the device and dtype of its floats."""
    like = next(parameter for parameter in block.parameters() if parameter.is_floating_point())
    with torch.inference_mode(False):  # what is made under it could not learn
        return build().to(device=like.device, dtype=like.dtype)


def become_plain(block: MergingBlock) -> nn.Module:
    """The way back of `become_merging`. Raises ConfigError where something made another class of it."""
    plain = library_of(block)
    del block.policy, block.metric, block.reducer, block.recovery
    return as_class(block, plain)


def library_of(block: MergingBlock) -> type[nn.Module]:
    """The library's class of a merging block. Raises ConfigError where something made another class of it."""
    if isinstance(block, Host):
        return bases_of(block)[1]
    for library, merging in HOSTS.items():
        if merging is type(block) and not isinstance(library, str):
            return library
    raise ConfigError(
        f"a block became {type(block).__name__} after the model was patched, by FSDP or the like; unpatch it "
        "before"
    )


def host_of_block(kind: type[nn.Module]) -> type[MergingBlock]:
    """What is registered for a class of blocks. Raises LookupError where nothing is."""
    return HOSTS[kind if kind in HOSTS else label(kind)]


def obstacle_of(block: nn.Module) -> str | None:
    """Why tokens cannot merge in a block; None where they can."""
    try:
        merging = host_of_block(type(block))
    except LookupError:
        return f"its blocks are {type(block).__name__}, which no file of pipeline/backbone/hosts knows"
    return merging.refuses(block)
