"""What each part of a model is: its kind, and the task that alone uses it. Parts say so themselves; their
names are for state dicts.

A module says its kind by the attribute `part_kind`, and so speaks for all that it holds. What is held by
`ModulesOfTasks` or `ParametersOfTasks` is owned by the task that is its key.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from torch import nn

from pipeline.errors import ConfigError

METRIC, BASE, HEAD, BALANCE, FIXED = "metric", "base", "head", "balance", "fixed"
"""Metric embeddings, backbone, heads (and other learned parts of an objective), what weighs the tasks'
losses, and what no step trains, such as a teacher."""
KINDS = (METRIC, BASE, HEAD, BALANCE, FIXED)

TRAINED = {
    "modular": frozenset({METRIC}),
    "backbone": frozenset({BASE, HEAD}),
    "heads": frozenset({HEAD}),
    "joint": frozenset({METRIC, BASE, HEAD}),
    "end_to_end": frozenset({METRIC, BASE, HEAD}),
}
"""Mode of training -> kinds that it trains, sooner or later. What weighs the losses is trained in every
mode."""


class ModulesOfTasks(nn.ModuleDict):
    """Task -> a module that only this task uses."""


class ParametersOfTasks(nn.ParameterDict):
    """Task -> a parameter that only this task uses."""


@dataclass(frozen=True)
class Role:
    """kind: one of KINDS; None where nothing says it, as of the model as a whole. owner: the task that alone
    uses the part; None where tasks share it."""

    kind: str | None = None
    owner: str | None = None


def roles_of_modules(model: nn.Module) -> dict[str, Role]:
    """By name, the whole model ('') first. Raises ConfigError for a kind that there is not."""
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
        roles[name] = replace(role, kind=kind)
    return roles


def roles_of(model: nn.Module) -> dict[str, Role]:
    """Of each parameter and buffer, by name. Raises ConfigError for a parameter whose part says no kind:
    nobody could tell whether a mode trains it."""
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
    """Names of the parameters and buffers that the module itself has, and whether it is a parameter."""
    for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
        yield name, True
    for name, _ in module.named_buffers(recurse=False, remove_duplicate=False):
        yield name, False


def set_trainable(model: nn.Module, mode: str, frozen: Collection[str] = ()) -> None:
    """Freezes what the mode does not train, and what frozen tasks own. Raises ConfigError where a mode finds
    nothing to learn, and where a part does not say its kind."""
    roles = roles_of(model)
    if METRIC in TRAINED[mode] and METRIC not in {role.kind for role in roles.values()}:
        raise ConfigError(
            f"train.mode is '{mode}', but the merge policy has no metric embedding to learn; "
            "give train.mode='backbone', or merging.policy='dtem' with a reduction"
        )
    for name, parameter in model.named_parameters():
        wanted = roles[name].kind in TRAINED[mode] | {BALANCE} and roles[name].owner not in frozen
        parameter.requires_grad_(wanted and parameter.is_floating_point())
