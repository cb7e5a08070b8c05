"""A sweep for readers (table, plot) and for programs (JSON, CSV)."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from launch.plots import Curve, plot_curves
from launch.points import Point, Sweep
from launch.tables import markdown, spread


def print_sweep(sweeps: Sequence[Sweep]) -> None:
    for result in sweeps:
        where = result.conditions
        machine = f"{where['device']}, {where['threads']} threads, batch {where['batch']}, {where['precision']}"
        print(f"\n{result.task}: {where['samples']} samples of {where['split']}, {len(where['runs'])} run(s)")
        print(*(f"  {run}" for run in where["runs"]), sep="\n")
        print(markdown(*_table(result)))
        print(f"images/s: median of rounds in turns, {machine}")


def write_sweep(sweeps: Sequence[Sweep], folder: Path) -> list[Path]:
    """sweep.json and sweep.csv for all tasks, and a plot of each (PNG, SVG); the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for result in sweeps for row in _rows(result)]
    path, sheet = folder / "sweep.json", folder / "sweep.csv"
    content = [{"task": s.task, "metric": s.metric, "conditions": s.conditions, "points": list(_rows(s))} for s in sweeps]
    path.write_text(json.dumps(content, indent=1))
    with open(sheet, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(
            {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()} for row in rows
        )
    return [path, sheet, *(plot for result in sweeps for plot in _plot(result, folder / f"sweep_{result.task}"))]


def _rows(result: Sweep) -> list[dict[str, Any]]:
    """Plain data. `gmacs` is what papers call GFLOPs; `gflops` counts a multiply and an add as two."""
    rows = []
    for point in (result.whole, *result.points):
        row = json.loads(json.dumps(asdict(point)))
        extra = {"gmacs": point.macs / 1e9, "gflops": 2 * point.macs / 1e9, "macs_ratio": point.macs / result.whole.macs}
        rows.append({"task": result.task, **row, **extra})
    return rows


def _table(result: Sweep) -> tuple[list[str], list[list[str]]]:
    metrics = [result.metric, *(name for name in result.whole.scores if name not in (result.metric, "loss"))]
    macs = ["GMACs (papers' GFLOPs)", "GFLOPs", "MACs %"]
    columns = ["policy", *(f"{name} %" for name in metrics), *macs, "images/s", "tokens after each block"]
    return columns, [_cells(point, metrics, result.whole) for point in (result.whole, *result.points)]


def _cells(point: Point, metrics: Sequence[str], whole: Point) -> list[str]:
    scores = [spread([100 * value for value in point.scores[name]]) for name in metrics]
    macs = [f"{point.macs / 1e9:.4g}", f"{2 * point.macs / 1e9:.4g}", f"{100 * point.macs / whole.macs:.1f}"]
    speed = f"{median(point.images_per_s):.4g}" if point.images_per_s else "-"
    return [point.policy, *scores, *macs, speed, " ".join(map(str, point.tokens))]


def _plot(result: Sweep, stem: Path) -> list[Path]:
    policies = dict.fromkeys(point.policy for point in result.points)
    curves = [_curve(policy, result, [point for point in result.points if point.policy == policy]) for policy in policies]
    runs = len(result.conditions["runs"])
    title = f"{result.task}: {result.metric} against compute" + (f", {runs} runs" if runs > 1 else "")
    return plot_curves(curves, _curve("unmerged", result, [result.whole]), result.metric, title, stem)


def _curve(label: str, result: Sweep, points: Sequence[Point]) -> Curve:
    return Curve(label, [p.macs for p in points], [[100 * value for value in p.scores[result.metric]] for p in points])
