"""The names of classes that stand beside a set, in `classes.json`."""

import json
from dataclasses import dataclass

from pipeline.errors import SampleError

CLASSES = "classes.json"


@dataclass(frozen=True)
class Names:
    """Names of classes."""

    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
    """Names of the labels of masks, where these are numbered otherwise."""


def parse_names(path: str, data: bytes) -> Names:
    """The names in a file that holds a list of class names, or {"classes": [...], "mask_classes": [...]}.
    Raises SampleError for any other content."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise SampleError(f"{path}: {err}; give a JSON list of class names, or remove the file") from err
    lists = {"classes": plain} if isinstance(plain, list) else plain
    known = isinstance(lists, dict) and 0 < len(lists) == len(lists.keys() & {"classes", "mask_classes"})
    if not known or not all(map(_distinct, lists.values())):
        raise SampleError(
            f"{path}: give a JSON list of different class names, "
            'or {"classes": [...], "mask_classes": [...]} of lists'
        )
    return Names(**{kind: tuple(names) for kind, names in lists.items()})


def _distinct(names: object) -> bool:
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    )
