"""What the folder of a run holds for its report. It may be a stranger's: what is not as we write it is left
out."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.report.words import CAPTION_SHARES
from launch.run_report.evaluations import Evaluation, read_evaluations
from launch.run_report.files import lines, plain
from pipeline import run_folder
from pipeline.errors import ConfigError

MOST_PICTURES = 24
LARGEST_PICTURE = 1 << 24
"""Bytes of the largest sample picture that comes into the page."""


@dataclass(frozen=True)
class Shown:
    """A sample picture, and what it shows."""

    path: Path
    task: str
    key: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class RunFacts:
    """series: name -> its (step, value)s, in order of steps. units: task -> metric -> `%` or none. starts:
    see `train.starts`. sweeps: those of sweep.json."""

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    units: dict[str, dict[str, str]] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    sweeps: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Shown] = field(default_factory=list)


def read_facts(path: str) -> RunFacts:
    """Raises ConfigError where the path is not the folder of a run."""
    folder = Path(path)
    config = plain(folder / "config.json")
    if not isinstance(config, dict):
        there = os.path.lexists(folder / "config.json")
        why = "its config.json does not read" if there else "it has no config.json"
        raise ConfigError(f"{folder} is not the folder of a run: {why}; give one that `dtem train` wrote")
    log = config.get("log")
    named = log.get("name") if isinstance(log, dict) else None
    sweeps = plain(folder / "sweep" / "sweep.json")
    return RunFacts(
        folder=folder,
        name=named if isinstance(named, str) and named else folder.resolve().name,
        config=config,
        series=_series(lines(folder / "metrics.jsonl")),
        units=_units(config),
        evaluations=read_evaluations(folder),
        starts=lines(folder / "starts.jsonl"),
        sweeps=[own for own in sweeps if isinstance(own, dict)] if isinstance(sweeps, list) else [],
        pictures=_pictures(folder / "pictures"),
    )


def _units(config: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Of tasks of our own."""
    import tasks  # noqa: F401 - fills the registry
    from pipeline.model import TASKS

    own = config.get("tasks")
    kinds = (
        {task: own[task].get("type") for task in own if isinstance(own[task], dict)}
        if isinstance(own, dict)
        else {}
    )
    shares = dict.fromkeys(CAPTION_SHARES, "%")
    return {
        task: shares | dict(getattr(TASKS.get(kind), "metric_units", {}))
        for task, kind in kinds.items()
        if kind in TASKS.names()
    }


def _series(told: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Without details of classes."""
    found: dict[str, dict[int, float]] = {}
    for line in told:
        if type(step := line.get("step")) is not int:
            continue
        for name, value in line.items():
            if name != "step" and name.count("/") <= 2 and type(value) in (int, float):
                if math.isfinite(value):
                    found.setdefault(name, {})[step] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}


def _pictures(root: Path) -> list[Shown]:
    """Those of the last evaluation that has some."""
    steps = [own for own in root.glob("step_*") if run_folder.is_step(own) and not own.is_symlink()]
    for folder in sorted(steps, key=run_folder.step_of, reverse=True):
        told = plain(folder / "pictures.json")
        found = [_shown(folder, own) for own in told[:MOST_PICTURES]] if isinstance(told, list) else []
        if any(found):
            return [own for own in found if own is not None]
    return []


def _shown(folder: Path, facts: Any) -> Shown | None:
    if not isinstance(facts, dict) or not isinstance(facts.get("words"), list):
        return None
    path = folder / Path(str(facts.get("file", ""))).name
    if path.is_symlink() or not path.is_file() or path.suffix != ".png":
        return None
    if path.stat().st_size > LARGEST_PICTURE:
        return None
    return Shown(path, str(facts.get("task", "")), str(facts.get("key", "")), tuple(map(str, facts["words"])))
