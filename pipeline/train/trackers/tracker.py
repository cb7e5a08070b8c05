"""What a tracker is: one who is told the figures and pictures of a run, as they come."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from pipeline.files import write_text

FILE = "trackers.json"
"""In the folder of the run: tracker -> what the run is called there."""
_WRITES = Lock()
"""Trackers of one run have a thread each, and that file in common."""


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers see it: nothing in it is secret. config: resolved, plain. step: where it starts
    or goes on; figures of later steps are void."""

    folder: Path
    project: str
    name: str
    tags: tuple[str, ...]
    notes: str
    config: Mapping[str, Any]
    step: int = 0


@dataclass(frozen=True)
class Picture:
    """A PNG, and in words what it shows."""

    path: Path
    caption: str


class Tracker(Protocol):
    """Made with a TrackedRun and options of its own, then told in one thread. Whatever it raises ends it
    alone. A class has `check`, which raises ConfigError where its package is not installed."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Figures by name. They may be infinite or NaN."""
        ...

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Pictures by name, such as `digits/0`."""
        ...

    def close(self) -> None: ...


def known_as(run: TrackedRun, tracker: str, new: Callable[[], str]) -> str:
    """What the run is called at the tracker: as when it started, so that a run that goes on is the same one
    there; else as `new` says, which is kept. A file that is not as we write it counts as none."""
    path = run.folder / FILE
    if (known := _known(path).get(tracker)) is not None:
        return known
    made = new()
    with _WRITES:
        write_text(path, json.dumps(_known(path) | {tracker: made}, indent=1))
    return made


def _known(path: Path) -> dict[str, str]:
    try:
        read = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else {}
        return {name: own for name, own in read.items() if isinstance(own, str)}
    except (ValueError, RecursionError, AttributeError):
        return {}
