"""What the folder of a run holds for its report. It may be a stranger's: what is not as we write it is left
out."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import run_folder
from pipeline.errors import ConfigError

MOST_BYTES = 1 << 28
"""Size of the largest file that is read."""
MOST_PICTURES = 24


@dataclass(frozen=True)
class Shown:
    """A sample picture, and what it shows."""

    path: Path
    task: str
    key: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class RunFacts:
    """series: name -> its (step, value)s, in order of steps. starts: see `train.starts`. sweeps: those of
    sweep.json."""

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    sweeps: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Shown] = field(default_factory=list)


def read_facts(path: str) -> RunFacts:
    """Raises ConfigError where the path is not the folder of a run."""
    folder = Path(path)
    config = _json(folder / "config.json")
    if not isinstance(config, dict):
        raise ConfigError(f"{folder} is not the folder of a run: it has no config.json; give one that has")
    log = config.get("log")
    named = log.get("name") if isinstance(log, dict) else None
    sweeps = _json(folder / "sweep" / "sweep.json")
    return RunFacts(
        folder=folder,
        name=named if isinstance(named, str) and named else folder.resolve().name,
        config=config,
        series=_series(_lines(folder / "metrics.jsonl")),
        starts=_lines(folder / "starts.jsonl"),
        sweeps=[own for own in sweeps if isinstance(own, dict)] if isinstance(sweeps, list) else [],
        pictures=_pictures(folder / "pictures"),
    )


def _series(lines: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Without details of classes."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
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
        told = _json(folder / "pictures.json")
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
    return Shown(path, str(facts.get("task", "")), str(facts.get("key", "")), tuple(map(str, facts["words"])))


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in (_bytes(path) or b"").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(_bytes(path) or b"null")
    except (ValueError, RecursionError):
        return None


def _bytes(path: Path) -> bytes | None:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    return path.read_bytes()
