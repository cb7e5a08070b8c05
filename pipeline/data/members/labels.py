"""Lists of the classes of an image, by name or by number: in a member json, or in a field of it."""

import json
from collections.abc import Mapping, Sequence

from pipeline.data.members.decode import decode_json
from pipeline.errors import SampleError, first_few

FIELD = "labels"
"""Field of json that holds the classes."""
MAX_LABELS = 10_000
"""Most classes of one image."""


def decode_labels(data: bytes, field: str = FIELD) -> tuple[int | str, ...]:
    """The classes in a member json: a list of names or numbers, or such a list in `field`. An empty list is
    an image that has none of the classes. Raises SampleError."""
    known = decode_json(data)
    if isinstance(known, dict):
        if field not in known:
            there = first_few([f"{name:.40}" for name in known], 8, ", ") or "none"
            raise SampleError(f"json has no field '{field}' (fields: {there}); see data.label_field")
        known = known[field]
    return checked_labels(known, f"json: '{field}'")


def checked_labels(labels: object, where: str) -> tuple[int | str, ...]:
    """The labels of an image, which are names or numbers, each once. Raises SampleError."""
    if not isinstance(labels, list) or len(labels) > MAX_LABELS:
        raise SampleError(f"{where} is {labels!r:.60}; give a list of classes, [] for none")
    seen: set[str] = set()
    for label in labels:
        whole = isinstance(label, int) and not isinstance(label, bool) and label >= 0
        if not (whole or (isinstance(label, str) and label.strip())):
            raise SampleError(f"{where} holds {label!r:.60}; give names, or numbers from 0 on")
        if str(label) in seen:
            raise SampleError(f"{where} has the class {label!r:.60} twice; give each class once")
        seen.add(str(label))
    return tuple(labels)


def numbers_of(labels: Sequence[int | str], places: Mapping[str, int], count: int) -> tuple[int, ...]:
    """The numbers of labels, below `count`. places: class name -> its number. Raises SampleError for a class
    that is not among them, and for one that is named twice."""
    found = []
    for label in labels:
        number = label if isinstance(label, int) else places.get(label, -1)
        if not 0 <= number < count:
            known = first_few([repr(name) for name in places], 4, ", ")
            raise SampleError(f"class {label!r:.60} is none of the {count} classes ({known})")
        found.append(number)
    if len(set(found)) < len(found):
        raise SampleError(f"json has a class twice, by name and by number: {list(labels)!r:.100}")
    return tuple(found)


def encode_labels(labels: Sequence[int | str]) -> bytes:
    """The member json of these classes."""
    return json.dumps({FIELD: list(labels)}).encode()


def renumbered(data: bytes, table: Sequence[int], field: str = FIELD) -> bytes:
    """The member with numbers of classes renumbered by `table`. Names stay, and so does a json without such a
    list. Raises SampleError for a number that is not in the table."""
    known = decode_json(data)
    labels = known.get(field) if isinstance(known, dict) else known
    if not isinstance(labels, list) or not any(isinstance(label, int) for label in labels):
        return data
    new: list[int | str] = []
    for label in checked_labels(labels, f"json: '{field}'"):
        new.append(table[numbers_of([label], {}, len(table))[0]] if isinstance(label, int) else label)
    return json.dumps(known | {field: new} if isinstance(known, dict) else new).encode()
