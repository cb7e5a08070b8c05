"""The mode of each part of a model: training, in which dropout, drop path and batch norm act as they do
there, or evaluation."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from pipeline.parts import Role, roles_of_modules


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """While it is open, all parts are in evaluation mode; afterwards each is in the mode that it was in."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def set_modes(model: nn.Module, trains: Collection[str]) -> None:
    """Training mode for the parts that learn in a step that trains these kinds. The others, frozen or
    resting, are in evaluation mode: their dropout, drop path and batch statistics neither blur nor change
    what they are.

    A part goes by the parameters of its own kind that it holds (a block is no metric embedding, though it
    holds one). One that has none goes by the part that holds it, where that plays the same role. The model
    itself is in training mode: it says what the pass is for.
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
    """A part, the one that holds it, and so on, as long as they are of its kind; by name."""
    kind = roles[name].kind
    while name and roles[name].kind == kind:
        yield name
        name = name.rpartition(".")[0]
    if roles[name].kind == kind:
        yield name
