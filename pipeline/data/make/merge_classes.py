"""The classes of several sets as those of one."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.samples.class_names import are_numbers
from pipeline.data.shards.manifest import Manifest
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Tables:
    """classes, mask_classes: names in the new set."""

    classes: tuple[str, ...]
    mask_classes: tuple[str, ...]
    numbers: tuple[tuple[int, ...] | None, ...]
    """Of each set, the new number of each of its labels; None where labels stay."""


def reconciled(sources: Sequence[str], manifests: Sequence[Manifest]) -> Tables:
    """The classes of the first set, then those of each next one that are new, by name. Raises ConfigError
    where a name stands twice in a set, where some sets name their classes and others number them, and where
    masks are of different classes."""
    first = manifests[0]
    for source, own in zip(sources, manifests, strict=True):
        if "seg.png" in own.schema and own.mask_names != first.mask_names:
            raise ConfigError(
                f"the masks of {sources[0]} and {source} have different classes; labels in masks are not "
                "renumbered: make both sets with one classes.json"
            )
        if len(set(own.classes)) < len(own.classes):
            raise ConfigError(f"{source}: two of its classes have one name; name them apart in classes.json")
    tables = [one.classes for one in manifests]
    if all(map(are_numbers, tables)):
        return Tables(max(tables, key=len), first.mask_classes, (None,) * len(manifests))
    for source, own in zip(sources, tables, strict=True):
        if are_numbers(own) and own:
            raise ConfigError(
                f"the classes of {source} have no names and others have; name them in classes.json beside "
                "its shards, then `dtem shards make index`"
            )
    union = tuple(dict.fromkeys(name for own in tables for name in own))
    place = {name: number for number, name in enumerate(union)}
    renumbered = (tuple(place[name] for name in own) for own in tables)
    numbers = tuple(None if own == tuple(range(len(own))) else own for own in renumbered)
    return Tables(union, first.mask_classes, numbers)
