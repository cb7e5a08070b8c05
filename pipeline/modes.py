"""Training or evaluation mode of each part of a model, which decides on dropout, drop path and batch norm."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from torch import nn

from pipeline.parts import Role, roles_of_modules


class HasModes(Protocol):
    """The methods of an nn.Module that concern the modes of its parts."""

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> object: ...


@contextmanager
def evaluation_mode(model: HasModes) -> Iterator[None]:
    """A context with all parts in evaluation mode. Afterwards each part has its former mode again."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def set_modes(model: nn.Module, trains: Collection[str | None]) -> None:
    """Sets training mode for the parts that learn in a step that trains these kinds (None: what says no
    kind), and evaluation mode for the others, frozen or resting: without dropout or drop path, and with fixed
    batch statistics.

    The parameters of its own kind inside a part decide on its mode (a block is no metric embedding, though it
    contains one). A part without any has the mode of its parent, where that has the same role. The model
    itself is in training mode, which tells the purpose of the pass.
    """
    roles, modules = roles_of_modules(model), dict(model.named_modules(remove_duplicate=False))
    learns: dict[str, bool] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            learning = parameter.requires_grad and roles[name].kind in trains
            for part in _upwards(name, roles):
                learns[part] = learns.get(part, False) or learning
    for name, module in modules.items():
        holder = name.rpartition(".")[0]
        inherited = learns.get(holder, False) and roles[holder] == roles[name]
        module.training = learns.setdefault(name, inherited)
    model.training = True


def _upwards(name: str, roles: Mapping[str, Role]) -> Iterator[str]:
    """Yields the names of a part and of its parents, as long as they are of its kind."""
    kind = roles[name].kind
    while name and roles[name].kind == kind:
        yield name
        name = name.rpartition(".")[0]
    if roles[name].kind == kind:
        yield name
