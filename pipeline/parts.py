"""Roles of the parts of a model: the kind of a part, and the task that alone uses it.

A module declares its kind by the attribute `part_kind`, for itself and for all in it that declares none.
FIXED is for all in it, whatever that declares. The members of `ModulesOfTasks` and `ParametersOfTasks` are
owned by the task that is their key. Names of parts are for state dicts only.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

from pipeline.errors import ConfigError

M = TypeVar("M", bound=nn.Module)

METRIC, BASE, HEAD, BALANCE, FIXED = "metric", "base", "head", "balance", "fixed"
"""Metric embeddings; the backbone; heads, and other learned parts of an objective; the balancing; and parts
that no step trains, such as a teacher."""
KINDS = (METRIC, BASE, HEAD, BALANCE, FIXED)

TRAINED = {
    "modular": frozenset({METRIC}),
    "backbone": frozenset({BASE, HEAD}),
    "heads": frozenset({HEAD}),
    "joint": frozenset({METRIC, BASE, HEAD}),
    "end_to_end": frozenset({METRIC, BASE, HEAD}),
}
"""Maps a mode of training to the kinds that it trains. The balancing is trained in every mode."""


class ModulesOfTasks(nn.ModuleDict, Generic[M]):
    """Maps a task to a module that only this task uses."""

    if TYPE_CHECKING:

        def __getitem__(self, key: str) -> M: ...


class ParametersOfTasks(nn.ParameterDict):
    """Maps a task to a parameter that only this task uses."""


@dataclass(frozen=True)
class Role:
    """The role of a part."""

    kind: str | None = None
    """One of KINDS; None where no module declares it, as for the model as a whole."""
    owner: str | None = None
    """The task that alone uses the part; None where tasks share it."""


def roles_of_modules(model: nn.Module) -> dict[str, Role]:
    """Maps the name of each module to its role, the whole model ('') first. Raises ConfigError for an unknown
    kind."""
    modules = dict(model.named_modules(remove_duplicate=False))
    roles: dict[str, Role] = {}
    for name, module in modules.items():
        holder, _, key = name.rpartition(".")
        role = roles[holder] if name else Role()
        if name and isinstance(modules[holder], ModulesOfTasks):
            role = replace(role, owner=key)
        kind = getattr(module, "part_kind", role.kind)
        if kind is not None and kind not in KINDS:
            raise ConfigError(
                f"{name} ({type(module).__name__}) has part_kind {kind!r}; give one of {', '.join(KINDS)}"
            )
        roles[name] = role if role.kind == FIXED else replace(role, kind=kind)
    return roles


def roles_of(model: nn.Module) -> dict[str, Role]:
    """Maps the name of each parameter and buffer to its role. Raises ConfigError for a parameter without a
    kind: no mode could tell whether to train it."""
    roles = roles_of_modules(model)
    found: dict[str, Role] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, is_parameter in _own_tensors(module):
            full = f"{name}.{key}" if name else key
            if is_parameter and roles[name].kind is None:
                raise ConfigError(
                    f"the parameter {full} is of no kind, so no mode of training knows what to do with it; "
                    f"give {type(module).__name__}, or a module that holds it, the attribute part_kind: one "
                    f"of {', '.join(KINDS)}"
                )
            of_task = isinstance(module, ParametersOfTasks)
            found[full] = replace(roles[name], owner=key) if of_task else roles[name]
    return found


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, bool]]:
    """Yields the name of each parameter and buffer of the module itself, and whether it is a parameter."""
    for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
        yield name, True
    for name, _ in module.named_buffers(recurse=False, remove_duplicate=False):
        yield name, False


def set_trainable(model: nn.Module, mode: str, frozen: Collection[str] = ()) -> None:
    """Freezes the parts that the mode does not train, and those of frozen tasks. Raises ConfigError where the
    mode needs a metric embedding and there is none, and where a parameter has no kind."""
    roles = roles_of(model)
    if METRIC in TRAINED[mode] and METRIC not in {role.kind for role in roles.values()}:
        raise ConfigError(
            f"train.mode is '{mode}', but the merge policy has no metric embedding to learn; "
            "give train.mode='backbone', or merging.policy='dtem' with a reduction"
        )
    for name, parameter in model.named_parameters():
        wanted = roles[name].kind in TRAINED[mode] | {BALANCE} and roles[name].owner not in frozen
        parameter.requires_grad_(wanted and parameter.is_floating_point())


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that `set_trainable` left to train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
