"""Copies of a model that share its tensors."""

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def sharing_tensors(model: M) -> M:
    """A copy of the model whose parameters and buffers are the model's own. Its modules are new, so that it
    can be patched, or merge in another way, at no memory."""
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)
