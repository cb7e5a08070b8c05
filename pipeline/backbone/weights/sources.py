"""Weights by another project's names: `NAME:...` in `backbone.weights`."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from pipeline.registry import Registry


class WeightSource(Protocol):
    """Finds weights by the names that a project gave them. Importing one does not import that project."""

    def state_dict(self, where: str) -> dict[str, Tensor]:
        """The tensors of `NAME:where`. Raises ConfigError and CheckpointError."""
        ...

    def preprocessing(self, where: str) -> Mapping[str, Any]:
        """How the weights at `NAME:where` want their pixels: fields of Preprocessing. Raises ConfigError."""
        ...


SOURCES: Registry[WeightSource] = Registry("source of weights")
"""Filled by the package `tasks`, as TASKS is."""


def named_source(weights: str) -> tuple[WeightSource, str] | None:
    """The source that `backbone.weights` names, and the rest of the text; None for a path."""
    name, _, where = weights.partition(":")
    return (SOURCES.build(name), where) if name in SOURCES.names() else None
