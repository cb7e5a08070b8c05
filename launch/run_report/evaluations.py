"""What `dtem evaluate RUN --out RUN/evaluation.json` has saved of a run: scores, and which classes are taken
for which. A file may be a stranger's: what is not as we write it is left out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.measure.scores import of_classes
from launch.run_report.files import plain

PATTERN = "evaluation*.json"
MOST_FILES, MOST_CLASSES = 8, 2048


@dataclass(frozen=True)
class TaskResult:
    """scores: metric -> score, without those of classes. of_class: metric -> the score of each class, None
    where it has none. confusion [K][K]: rows are labels, columns predictions; empty where it was not saved.
    classes: names of the K classes."""

    task: str
    scores: Mapping[str, float]
    of_class: Mapping[str, list[float | None]]
    confusion: list[list[int]]
    classes: list[str]


@dataclass(frozen=True)
class Evaluation:
    """file: its name in the run's folder. about: how it was done, name -> value."""

    file: str
    about: Mapping[str, str]
    tasks: list[TaskResult]


def read_evaluations(root: Path) -> list[Evaluation]:
    """Those of the files evaluation*.json of a run, by name."""
    found = [_evaluation(path) for path in sorted(root.glob(PATTERN))[:MOST_FILES]]
    return [own for own in found if own is not None]


def _evaluation(path: Path) -> Evaluation | None:
    facts = plain(path)
    if not isinstance(facts, dict) or not isinstance(scores := facts.get("scores"), dict):
        return None
    about = {name: str(facts.get(name, "")) for name in ("split", "policy", "step", "weights", "precision")}
    tasks = [
        _result(task, own, _of(facts, "confusion", task), _of(facts, "classes", task))
        for task, own in scores.items()
        if isinstance(own, dict)
    ]
    return Evaluation(path.name, about, tasks)


def _of(facts: Mapping[str, Any], name: str, task: str) -> list[Any]:
    by_task = facts.get(name)
    found = by_task.get(task) if isinstance(by_task, dict) else None
    return found if isinstance(found, list) else []


def _result(task: str, scores: Mapping[str, Any], confusion: list[Any], classes: list[Any]) -> TaskResult:
    single = set(of_classes(scores))
    known = {name: _finite(value) for name, value in scores.items() if name not in single}
    whole = {name: value for name, value in known.items() if value is not None}
    counts = confusion if _is_matrix(confusion) else []
    names = [str(name) for name in classes[:MOST_CLASSES]]
    names += [str(i) for i in range(len(names), len(counts))]
    metrics = dict.fromkeys(name.partition("/")[0] for name in scores if name in single)
    of_class = {
        metric: [_finite(scores.get(f"{metric}/{i}")) for i in range(len(names))] for metric in metrics
    }
    return TaskResult(task, whole, of_class, counts, names)


def _is_matrix(rows: list[Any]) -> bool:
    """Whether it is a square of counts."""
    return len(rows) <= MOST_CLASSES and all(
        isinstance(row, list) and len(row) == len(rows) and all(type(n) is int and n >= 0 for n in row)
        for row in rows
    )


def _finite(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None
