"""Sources of weights: `NAME:...` in `backbone.weights` names one, and the weights by that project's name."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from pipeline.registry import Registry


class WeightSource(Protocol):
    """Finds weights by a project's own names for them. Importing a source does not import that project."""

    def state_dict(self, where: str) -> dict[str, Tensor]:
        """The tensors of `NAME:where`. Raises ConfigError and CheckpointError."""
        ...

    def preprocessing(self, where: str) -> Mapping[str, Any]:
        """Fields of Preprocessing for the weights at `NAME:where`. Raises ConfigError."""
        ...


SOURCES: Registry[WeightSource] = Registry("source of weights")
"""Sources by name. The package `tasks` fills it, like TASKS."""


def named_source(weights: str) -> tuple[WeightSource, str] | None:
    """The source that `backbone.weights` names, and the rest of the text; None for a path."""
    name, _, where = weights.partition(":")
    return (SOURCES.build(name), where) if name in SOURCES.names() else None
