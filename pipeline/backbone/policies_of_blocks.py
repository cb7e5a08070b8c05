"""The policies of a model's blocks, exchanged: its weights and all else stay."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from pipeline.backbone.block import MergingBlock
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.vit import MergingViT
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import MergePolicy
from pipeline.shared_tensors import sharing_tensors

M = TypeVar("M", bound=nn.Module)
Merges = MergingViT | MergingModel
"""A backbone of a run, or a patched model."""


def policy_of(model: Merges) -> MergePolicy:
    """The policy by which all blocks merge."""
    return model.merging.policy if isinstance(model, MergingModel) else model.policy


def with_options(model: M, options: Mapping[str, Any], merges: Callable[[M], Merges]) -> M:
    """The model under options of its policy, which change what is chosen and not what is learned: itself
    where there are none, else a copy that shares its tensors. merges: gives the part of a model that merges.
    Raises ConfigError for wrong options."""
    if not options:
        return model
    other = sharing_tensors(model)
    part = merges(other)
    policy = policy_of(part)
    new = POLICIES.build(policy.name, **{**policy.options, **options})
    _set(part, new, [new] * len(_blocks(part)))
    return other


@contextmanager
def merging_by(model: Merges, policies: Sequence[MergePolicy]) -> Iterator[None]:
    """Each block merges by a policy of its own inside, and attends by size, whatever the model does else."""
    before = policy_of(model), [block.policy for block in _blocks(model)]
    attends = _attends(model)
    try:
        _set(model, policies[0], policies)
        _attend(model, "always")
        yield
    finally:
        _set(model, *before)
        _attend(model, attends)


def _blocks(model: Merges) -> Sequence[MergingBlock]:
    return model.merging_blocks if isinstance(model, MergingModel) else list(model.blocks)


def _set(model: Merges, policy: MergePolicy, policies: Sequence[MergePolicy]) -> None:
    if isinstance(model, MergingModel):
        model.merging = replace(model.merging, policy=policy)
    else:
        model.policy = policy
    for block, own in zip(_blocks(model), policies, strict=True):
        block.policy = own


def _attends(model: Merges) -> str:
    where = model.merging if isinstance(model, MergingModel) else model
    return where.proportional_attention


def _attend(model: Merges, how: str) -> None:
    if isinstance(model, MergingModel):
        model.merging = replace(model.merging, proportional_attention=how)
    else:
        model.proportional_attention = how
