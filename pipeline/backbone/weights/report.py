"""Report of `load_weights`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.token_state import Grid


@dataclass(frozen=True)
class LoadReport:
    """Tensors that were taken from a checkpoint, and those that were not. `print` shows it as a sentence."""

    sources: Mapping[str, str]
    """Key of the module -> key of the checkpoint that filled it."""
    missing: tuple[str, ...]
    """Keys of the module that kept their values."""
    left: tuple[str, ...]
    """Keys of the checkpoint that filled nothing."""
    redrawn: Mapping[str, str] = field(default_factory=dict)
    """Key among `missing` that depends on another number of classes -> both shapes."""
    grids: tuple[Grid, Grid] | None = None
    """Grid of the position embedding in the checkpoint and in the module, where it was resampled."""
    heads: Mapping[str, str] = field(default_factory=dict)
    """Task -> place of its head in the checkpoint; empty text for the head of a classifier."""
    started: tuple[str, ...] = ()
    """Keys of the metric embeddings that start at the keys of the attention."""

    @property
    def taken(self) -> tuple[str, ...]:
        return tuple(self.sources)

    def __str__(self) -> str:
        parts = [f"took {len(self.sources)} tensors"]
        parts += [f"the head of {task} from {place or 'a classifier'}" for task, place in self.heads.items()]
        if self.grids:
            parts.append("positions from a grid of {}x{} to {}x{}".format(*self.grids[0], *self.grids[1]))
        parts += [f"{name} is drawn anew: {shapes}" for name, shapes in self.redrawn.items()]
        if self.started:
            parts.append("metric embeddings start at the keys")
        parts.append(f"kept own values: {_some([key for key in self.missing if key not in self.redrawn])}")
        return "; ".join([*parts, f"left unused: {_some(self.left)}"])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "none"
