"""Relative paths of what a config reads. Standard library only.

They are of the current folder, as those of any command are. A run notes that folder as `folder`, so a command
finds its data from anywhere. The texts stay as they were written: where nothing is found in `folder`, because
the project was moved or is mounted elsewhere, the current folder's is taken.
"""

import fnmatch
import logging
import os
import re
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

WEIGHTS = "backbone.weights"
PLACES = (WEIGHTS, "tasks.*.data.train", "tasks.*.data.val", "tasks.*.data.test")
"""Settings that name what is read. Those that are written, such as `output`, are of the current folder."""
_NAMED = re.compile(r"[A-Za-z0-9_+.-]+:")


def in_their_folder(data: dict[str, Any]) -> dict[str, Any]:
    """A config as plain data, without `folder`: its relative paths lead into that folder, where they are
    there. Values of another kind than text stay as they are."""
    folder = data.get("folder")
    if not isinstance(folder, str):
        return data
    rest = {key: value for key, value in data.items() if key != "folder"}
    return _changed(rest, lambda field, place: _found(field, place, folder))


def same_place(field: str, one: Any, one_folder: str | None, other: Any, other_folder: str | None) -> bool:
    """Whether two values of the setting of this dotted name are of PLACES, and name the same, each relative
    to its own folder (None: the current one)."""
    if not _is_place(field):
        return False

    def whole(value: Any, folder: str | None) -> Any:
        return _mapped(value, lambda place: _joined(field, place, folder or ".").rstrip("/"))

    return whole(one, one_folder) == whole(other, other_folder)


def _is_place(field: str) -> bool:
    return any(fnmatch.fnmatch(field, pattern) for pattern in PLACES)


def _changed(data: Any, change: Callable[[str, str], str], field: str = "") -> Any:
    """The data with `change` made to each location in PLACES. field: the dotted name of `data`."""
    if _is_place(field):
        return _mapped(data, lambda place: change(field, place))
    if isinstance(data, dict):
        within = f"{field}." if field else ""
        return {key: _changed(value, change, f"{within}{key}") for key, value in data.items()}
    return data


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return "::".join(map(change, value.split("::"))) if isinstance(value, str) else value


def _found(field: str, place: str, folder: str) -> str:
    """The location in the folder; as it is where the current folder alone has it."""
    there = _joined(field, place, folder)
    if os.path.lexists(_first_part(there)) or not os.path.lexists(_first_part(place)):
        return there if os.path.isdir(folder) else place
    log.info("%s: %s is not in %s; the current folder's is taken", field, place, folder)
    return place


def _joined(field: str, place: str, folder: str) -> str:
    """The location as one of the folder. URLs, and names of weights such as open_clip:MODEL@TAG, stay."""
    name = _NAMED.match(place)
    kind, path = (name[0], place[name.end() :]) if name else ("", place)
    if not path or os.path.isabs(path) or (kind and field == WEIGHTS):
        return place
    return kind + os.path.normpath(os.path.join(os.path.abspath(folder), path))


def _first_part(place: str) -> str:
    """The path of a location up to its first braces or options: what can be looked for on the disk."""
    name = _NAMED.match(place)
    path = place[name.end() :] if name else place
    before, braces, _ = path.partition("{")
    return os.path.dirname(before) or "." if braces else path.partition("?")[0]
