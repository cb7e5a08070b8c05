"""Agreement of the class names of two sets: a label must mean the same in both, as one head reads them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pipeline.errors import ConfigError, first_few, printable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """The labels of a set as a model sees them."""

    names: tuple[str, ...]
    """Names of the labels 0, 1, ... of the model."""
    numbers: tuple[int, ...]
    """[labels of the shards]: the label of the model that each is."""

    @classmethod
    def as_stored(cls, names: Sequence[str]) -> "Labels":
        """Labels that keep their numbers."""
        return cls(tuple(names), tuple(range(len(names))))


def agreed(own: Sequence[str], known: Sequence[str], where: str) -> Labels:
    """The labels of a set for a head that was trained on other names.

    own: names of the set's labels. known: names that the head was trained on; empty where that is not known.
    where: the setting that names the set. If the own names are some of the known ones, or all in another
    order, labels are renumbered by name. If names only number the classes, labels stay as stored. Raises
    ConfigError for anything else.
    """
    own, known, stored = tuple(own), tuple(known), Labels.as_stored(own)
    if not known or own == known:
        return stored
    if set(own) <= set(known) and len(set(own)) == len(own) and len(set(known)) == len(known):
        return Labels(known, tuple(known.index(name) for name in own))
    if are_numbers(own):
        return Labels(known, stored.numbers) if len(own) <= len(known) else stored
    if are_numbers(known):
        return stored
    strange = [name for name in own if name not in known] or [
        name for name in own if own.count(name) > 1 or known.count(name) > 1
    ]
    raise ConfigError(
        f"{where}: {len(strange)} of its {len(own)} classes ({_listed(strange)}) are not among those "
        "that are trained on "
        f"({_listed(known)}), so labels would mean something else. Give shards with these names, or "
        "make both splits from one tree"
    )


@lru_cache(maxsize=64)
def tell_renumbered(stored: tuple[str, ...], labels: Labels, where: str) -> None:
    """Warns once of labels that are renumbered by name: right for shards in another order, but wrong where
    only the names were corrected after training."""
    moved = [
        (name, old, new)
        for old, (name, new) in enumerate(zip(stored, labels.numbers, strict=True))
        if old != new
    ]
    if moved:
        name, old, new = moved[0]
        log.warning(
            "%s: %d of its %d classes have other numbers than where the model learned them (%s is %d there, "
            "%d here); its labels are renumbered by name. Were only the names put in another order, its "
            "scores are wrong",
            *(where, len(moved), len(stored), printable(name), new, old),
        )


def are_numbers(names: tuple[str, ...]) -> bool:
    """Whether the names only number the classes, as of shards without names: 0, 1, ..., or label 1, label 2,
    ..."""
    return any(
        names == tuple(f"{word}{first + n}" for n in range(len(names)))
        for word, first in (("", 0), ("label ", 0), ("label ", 1))
    )


def _listed(names: Sequence[str]) -> str:
    return first_few([f"{name!r:.60}" for name in names], 4, ", ")
