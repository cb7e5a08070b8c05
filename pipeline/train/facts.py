"""The facts of a checkpoint: all that is not a tensor. A checkpoint may be a stranger's, so the type of each
fact is checked before it is used."""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError

LARGEST = 2**53
"""Largest count: JSON readers agree on whole numbers up to here."""


def check_facts(path: Path, facts: Mapping[str, Any], needed: Collection[str] = ()) -> None:
    """Raises CheckpointError for a fact of the manifest at `path` that has another type, or is needed and
    missing."""
    for name, (fits, kind) in _KINDS.items():
        if name in needed and name not in facts:
            raise CheckpointError(
                f"{path} does not say its {name}; another version wrote it, or another program"
            )
        if name in facts and not fits(facts[name]):
            raise CheckpointError(f"{path} is damaged or made by hand: its {name} is not {kind}")


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _table(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _progress(value: Any) -> bool:
    # older checkpoints have none of the last two
    if not isinstance(value, dict) or value.keys() | {"evaluated", "best_step"} != {
        "step",
        "samples",
        "nonfinite",
        "best",
        "evaluated",
        "best_step",
    }:
        return False
    best, best_step = value["best"], value.get("best_step")
    return (
        _count(value["step"])
        and _table(_count)(value["samples"])
        and _count(value["nonfinite"])
        and _count(value.get("evaluated", 0))
        and (best_step is None or _count(best_step))
        and (best is None or (type(best) in (int, float) and math.isfinite(best)))
    )


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_count, "a whole number from 0"),
    "config": (lambda value: isinstance(value, dict), "a configuration"),
    "digest": (_text, "text"),
    "commit": (lambda value: value is None or _text(value), "text"),
    "versions": (_table(_text), "a version for each package"),
    "world_size": (lambda value: _count(value) and value > 0, "a number of ranks"),
    "global_batch": (_table(_count), "a number of samples for each task"),
    "progress": (_progress, "step, samples, nonfinite and best"),
    "streams": (_table(_table(_count)), "a position in the data for each task"),
    "classes": (_table(_texts), "class names for each task"),
    "origins": (_texts, "a list of paths"),
}
TO_CONTINUE = tuple(name for name in _KINDS if name not in ("classes", "origins"))
"""Facts that a run needs to continue from a checkpoint; older ones lack the others."""
