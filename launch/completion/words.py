"""Values that a shell completes: names of configs and policies, and settings of a config with theirs."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.config.schema import RunConfig
from pipeline.config.shipped import SCOPE, runs


def bare_configs() -> list[str]:
    """The project's configs, by their names."""
    return [f"{SCOPE}{name}" for name in runs()]


def policies() -> list[str]:
    from pipeline.merging.policies import POLICIES

    return sorted(POLICIES.names())


def settings() -> list[str]:
    """`train.steps=`, and where a setting is one of some words, `train.mode=joint` for each of them. Those of
    a task, whose name is the config's, are not there."""
    chosen = _registered()
    return [
        f"{name}={value}" for name, values in _leaves(RunConfig, "") for value in chosen.get(name, values)
    ]


def _registered() -> dict[str, list[str]]:
    import tasks  # noqa: F401 - fills the registries
    from pipeline.balancing import BALANCING
    from pipeline.objectives import OBJECTIVES
    from pipeline.train.steps import STEPS

    named = {"objective.type": OBJECTIVES, "balancing.type": BALANCING, "step.type": STEPS}
    return {"merging.policy": policies()} | {name: sorted(found.names()) for name, found in named.items()}


def _leaves(kind: type, path: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (dotted name, the words that it may be) of each setting; of any value: one that is empty."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _leaves(hint, f"{path}{name}.")
        elif name != "tasks":
            yield f"{path}{name}", _words(hint)


def _words(hint: Any) -> list[str]:
    if hint is bool:
        return ["true", "false"]
    return [str(word) for word in get_args(hint)] if get_origin(hint) is Literal else [""]
