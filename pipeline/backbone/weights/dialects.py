"""Translation of other projects' state dicts to our keys. A dialect is a project's way to name tensors."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

Dialect = Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor] | None]
"""Takes a state dict and the module that it is for. Returns the tensors under the module's keys (or timm's),
or None for a state dict of another project. Names that it does not know stay as they are."""

DIALECTS: dict[str, Dialect] = {}
"""Name of a project -> its dialect. At most one dialect knows a state dict."""


def translated(state_dict: Mapping[str, Tensor], module: nn.Module) -> Mapping[str, Tensor]:
    """The state dict translated by the dialect that knows it; unchanged where none does."""
    for dialect in DIALECTS.values():
        if (tensors := dialect(state_dict, module)) is not None:
            return tensors
    return state_dict
