"""Translation of other projects' state dicts to our keys. A dialect is a project's way to name tensors."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from pipeline.backbone.weights.timm_reads import timm_weights
from pipeline.errors import CheckpointError

Dialect = Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor] | None]
"""Takes a state dict and the module that it is for. Returns the tensors under the module's keys (or timm's),
or None for a state dict of another project. Names that it does not know stay as they are."""

DIALECTS: dict[str, Dialect] = {}
"""Name of a project -> its dialect. At most one dialect knows a state dict."""


def translated(state_dict: Mapping[str, Tensor], module: nn.Module) -> Mapping[str, Tensor]:
    """The state dict translated by the dialect that knows it, else by timm itself. Raises
    CheckpointError where its tensors do not have the shapes of that project."""
    for name, dialect in {**DIALECTS, "timm": timm_weights}.items():
        try:
            tensors = dialect(state_dict, module)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as err:
            raise CheckpointError(f"the checkpoint has keys of {name}, but not its shapes: {err}") from err
        if tensors is not None:
            return tensors
    return state_dict
