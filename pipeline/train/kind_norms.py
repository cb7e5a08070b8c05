"""Gradient norms of the embeddings and of the rest, where one step trains both (train.mode `joint`).

The engine says the norm of all. Hooks on the embeddings measure theirs, in the steps that are reported alone:
a vector of their size is summed over ranks, and the rest follows from the two norms.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import RunConfig
from pipeline.engine import divides_weights
from pipeline.interfaces import Sums
from pipeline.parts import METRIC
from pipeline.ranks import Ranks
from pipeline.train.conflict import adder

GRADIENT_NORMS = ("grad_norm_embeddings", "grad_norm_model")
"""Norms of what learns of the embeddings, and of all else."""


class KindNorms:
    """Measures in the steps before a report."""

    def __init__(self, embeddings: Sequence[nn.Parameter], every: int):
        """embeddings: parameters, whole. every: steps between reports; a shorter one at the end has none."""
        self._embeddings, self._every = list(embeddings), every
        self._sizes = [parameter.numel() for parameter in embeddings]
        self._vector: Tensor | None = None

    @contextmanager
    def measuring(self, step: int) -> Iterator[None]:
        """Adds up the gradients of the embeddings in the backward passes inside, where step number `step` is
        the last one before a report."""
        if (step + 1) % self._every:
            yield
            return
        self._vector = torch.zeros(sum(self._sizes), device=self._embeddings[0].device)
        parts = zip(self._embeddings, self._vector.split(self._sizes), strict=True)
        hooks = [parameter.register_hook(adder(part)) for parameter, part in parts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def logs(self, ranks: Ranks, norm: Tensor) -> Sums:
        """Both norms of the step that was measured, else nothing. A collective. norm: of all gradients."""
        if self._vector is None:
            return {}
        own = (ranks.all_reduce(self._vector) / ranks.world_size).norm()
        self._vector = None
        rest = (norm.to(own) ** 2 - own**2).clamp(min=0).sqrt()
        return {name: (value, 1.0) for name, value in zip(GRADIENT_NORMS, (own, rest), strict=True)}


def build_kind_norms(config: RunConfig, groups: Sequence[Mapping[str, Any]]) -> KindNorms | None:
    """None where a step does not train both by one plain backward pass, or weights are divided, whose
    gradients no rank has whole."""
    embeddings = [each for group in groups if group["kind"] == METRIC for each in group["params"]]
    plain = config.train.mode == "joint" and config.step.type in (None, "plain")
    if not plain or not embeddings or divides_weights(config):
        return None
    return KindNorms(embeddings, config.train.log_every)
