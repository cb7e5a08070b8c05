"""The settings in which two configs differ, by dotted path."""

from collections.abc import Iterator
from typing import Any

ABSENT = object()
"""Stands for a setting that a config has not, such as one of a task that only the other has."""


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (path, value, other value) of each leaf that differs, in the order of the configs. one, other:
    plain data; ABSENT in place of a value that is not there."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            where = f"{path}.{key}" if path else str(key)
            yield from differences(one.get(key, ABSENT), other.get(key, ABSENT), where)
    elif one != other or type(one) is not type(other):
        yield path, one, other


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of each setting; an empty section is one."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, data


def shown(value: Any) -> str:
    return "not there" if value is ABSENT else repr(value)
