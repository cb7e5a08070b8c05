"""The files of a run's folder, which may be a stranger's: links and what is too large are not read."""

import json
import math
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 28
"""Size of the largest file that is read."""

LARGEST = 1e30
"""What is larger is no figure that a chart could show, and is read as NaN."""


def plain(path: Path) -> Any:
    """The value of a JSON file; None where it is none."""
    try:
        return _value(_bytes(path) or b"null")
    except (ValueError, RecursionError):
        return None


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    found = []
    for line in (_bytes(path) or b"").splitlines():
        try:
            value = _value(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _value(data: bytes) -> Any:
    return json.loads(data, parse_int=_whole, parse_float=_figure)


def _whole(text: str) -> float:
    return int(text) if len(text) < 16 else _figure(text)


def _figure(text: str) -> float:
    value = float(text)
    return value if abs(value) <= LARGEST else math.nan


def _bytes(path: Path) -> bytes | None:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    return path.read_bytes()
