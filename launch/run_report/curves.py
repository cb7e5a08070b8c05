"""The curves of a report: training and validation against steps, and sweeps against compute."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.report.sweep_plot import least_height
from launch.report.words import curve_label, metric_words, policy_words, task_words
from launch.run_report.chart import Line, draw
from launch.run_report.read import RunFacts

CURVES = ("loss", "val/", "grad_norm", "lr", "samples_per_s", "data_wait")
WORDS = {
    "lr": "learning rate",
    "samples_per_s": "samples per second",
    "data_wait": "time waiting for data (%)",
    "grad_norm": "gradient norm",
    "grad_norm_model": "gradient norm, model",
    "grad_norm_embeddings": "gradient norm, embeddings",
}


def curves(runs: Sequence[RunFacts], names: Sequence[str], numbers: Iterator[int]) -> str:
    """One chart for each figure that several steps have, with a line for each run. numbers: of charts on the
    page."""
    known = dict.fromkeys(name for run in runs for name in run.series)
    wanted = [name for part in CURVES for name in known if _is_of(name, part)]
    charts = []
    for name in dict.fromkeys(wanted):
        times = 100.0 if name == "data_wait" or unit_of(runs, name) == "%" else 1.0
        lines = [
            Line(label, [(step, times * value, times * value, times * value) for step, value in own])
            for label, run in zip(names, runs, strict=True)
            if len(own := run.series.get(name, [])) > 1
        ]
        if lines:
            charts.append(draw(lines, _title(runs, name), "step", next(numbers)))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _title(runs: Sequence[RunFacts], name: str) -> str:
    if name.startswith("val/"):
        return score_words(runs, name)
    first, _, last = name.partition("/")
    if first == "grad_norm" and last:
        return f"{task_words(last)}: gradient norm"
    if last:
        return f"{task_words(first)}: {task_words(last)}, training"
    return WORDS.get(name, f"{task_words(name)}, training")


def score_words(runs: Sequence[RunFacts], name: str) -> str:
    """`digits: top-1 accuracy (%)` for val/digits/top1."""
    _, task, metric = [*name.split("/"), "", ""][:3]
    return f"{task_words(task)}: {metric_words(metric, unit_of(runs, name))}"


def unit_of(runs: Sequence[RunFacts], name: str) -> str:
    """That of the score val/TASK/METRIC, `%` or none."""
    _, task, metric = [*name.split("/"), "", ""][:3]
    return next((unit for run in runs if (unit := run.units.get(task, {}).get(metric))), "")


def _is_of(name: str, part: str) -> bool:
    if name.endswith(("/samples", "/missing")) or (part == "loss" and name.startswith("val/")):
        return False
    if part == "loss":
        return name.endswith("loss")
    return name == "lr" if part == "lr" else name.startswith(part)


def sweeps(runs: Sequence[RunFacts], names: Sequence[str], numbers: Iterator[int]) -> str:
    charts = []
    for label, run in zip(names, runs, strict=True):
        for sweep in run.sweeps:
            task, metric = str(sweep.get("task")), str(sweep.get("metric"))
            charts.append(sweep_chart(sweep, metric, f"{label}, {task_words(task)}: ", numbers))
    told = "<p>Score against compute. A band reaches from the worst to the best run.</p>"
    return f'{told}<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def sweep_chart(sweep: Mapping[str, Any], metric: str, named: str, numbers: Iterator[int]) -> str:
    """The chart of a metric of a sweep, as plain data; empty where no point has it. named: the start of its
    title."""
    if not (found := _points(sweep, metric)):
        return ""
    unit = "%" if _unit(sweep, metric) == "%" else ""
    title = f"{named}{metric_words(metric, unit)}"
    most = max(x for own in found.values() for x, _ in own)
    size, letter = (1.0, "G") if most >= 0.1 else (1e-3, "M")
    times = 100.0 if unit == "%" else 1.0
    lines = [
        Line(
            policy_words(label),
            [
                (x / size, times * sum(own) / len(own), times * min(own), times * max(own))
                for x, own in sorted(points)
            ],
        )
        for label, points in found.items()
    ]
    samples = _of(sweep, "conditions").get("samples")
    count = samples if type(samples) is int and samples > 0 else 0
    whole = max((p for line in lines for p in line.points), key=lambda p: p[0])[1]
    told = f"n = {count:,} samples of {_of(sweep, 'conditions').get('split')}" if count else ""
    within = (0.0, 100.0) if unit == "%" else (-math.inf, math.inf)
    least = least_height(whole, unit, count)
    return draw(lines, title, f"{letter}MACs per image", next(numbers), least=least, within=within, told=told)


def _points(sweep: Mapping[str, Any], metric: str) -> dict[str, list[tuple[float, list[float]]]]:
    """Label of a curve -> its (GMACs, score of each run)s."""
    found: dict[str, list[tuple[float, list[float]]]] = {}
    points = sweep.get("points")
    points = [point for point in points if isinstance(point, dict)] if isinstance(points, list) else []
    several = len({str(point["kind"]) for point in points if point.get("kind")}) > 1
    for point in points:
        try:
            scores = [float(value) for value in point["scores"][metric]]
            x, policy = float(point["gmacs"]), str(point["policy"])
        except (KeyError, TypeError, ValueError):
            continue
        if scores and all(map(math.isfinite, (*scores, x))):
            label = curve_label(policy, str(point.get("kind", "")) if several else "")
            found.setdefault(label, []).append((x, scores))
    return found


def _unit(sweep: Mapping[str, Any], metric: str) -> Any:
    return _of(sweep, "units").get(metric)


def _of(sweep: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = sweep.get(name)
    return found if isinstance(found, dict) else {}
