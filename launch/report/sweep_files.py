"""Writes a sweep for readers (table, plot) and for programs (JSON, CSV)."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from launch.measure.points import FOUND, MACS, Point, Sweep, Target
from launch.report.sweep_plot import Curve, Plot, draw_plots
from launch.report.tables import in_unit, markdown, score
from launch.report.words import curve_label, metric_words, task_words
from launch.saved.policy_names import kind_of
from pipeline.errors import ConfigError, counted, printable
from pipeline.files import replacing, write_text
from pipeline.merging.schedule import plain_reduction

MOST_LETTERS = 24
"""Of the name of a split below the title of a plot."""


def print_sweep(sweeps: Sequence[Sweep]) -> None:
    for result in sweeps:
        where = result.conditions
        machine = (
            f"{where['device']}, {where['threads']} threads, batch {where['batch']}, {where['precision']}"
        )
        print(f"\n{result.task}: {where['samples']} samples of {where['split']}, {len(where['runs'])} run(s)")
        print(*(f"  {run}" for run in where["runs"]), sep="\n")
        print(markdown(*_table(result)))
        machine += f", images of {'x'.join(map(str, where['pixels']))} pixels (the first)"
        timed = where.get("timed", "of the whole inference (all windows, all words)")
        print(f"images/s: {timed}, median of rounds in turns, {machine}")
        for line in _found(result):
            print(line)


def _found(result: Sweep) -> Iterator[str]:
    """The schedules that were found on images, as other commands take them; options of the policy that were
    found with them are settings of a run."""
    for kind in FOUND:
        points = [point for point in result.points if point.kind == kind]
        if not points:
            continue
        where = result.conditions["solved_on"]
        images = counted(where["images"], "image")
        yield f"{kind} on {images} of {printable(str(where['source']))}, none of which are in these scores:"
        for point in points:
            listed = plain_reduction(list(point.schedule), len(point.schedule))
            text = json.dumps(listed, separators=(",", ":"))
            options = "".join(
                f" with merging.options.{name}={json.dumps(value)}" for name, value in point.options.items()
            )
            yield f"  {point.target:g}: --policy {point.policy} --reduction '{text}'{options}"


def write_sweep(sweeps: Sequence[Sweep], folder: Path) -> list[Path]:
    """Writes sweep.json and sweep.csv for all tasks, a plot of each task (PNG, SVG), and for several tasks
    one figure with all plots. Without matplotlib the plots are left out, with a word.

    Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for result in sweeps for row in _rows(result)]
    path, sheet = folder / "sweep.json", folder / "sweep.csv"
    write_text(path, json.dumps(list(map(plain_sweep, sweeps)), indent=1))
    with replacing(sheet) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(
            {
                key: json.dumps(value) if isinstance(value, list | dict) else value
                for key, value in row.items()
            }
            for row in rows
        )
    try:
        return [path, sheet, *_write_plots(sweeps, folder)]
    except ConfigError as err:
        print(f"the plots are left out: {err}", file=sys.stderr)
        return [path, sheet]


def plain_sweep(result: Sweep) -> dict[str, Any]:
    """The sweep of a task as plain data, an item of sweep.json."""
    facts = {"task": result.task, "metric": result.metric, "units": dict(result.units)}
    left_out = [asdict(own) for own in result.left_out]
    return facts | {"conditions": result.conditions, "points": _rows(result), "left_out": left_out}


def _rows(result: Sweep) -> list[dict[str, Any]]:
    """The points as plain data. `gmacs` is what papers call GFLOPs; `gflops` counts a multiply and an add as
    two; `encoder_...` leaves out the head."""
    rows = []
    for point in (result.whole, *result.points):
        row = json.loads(json.dumps(asdict(point)))
        extra = {
            "gmacs": point.macs / 1e9,
            "gflops": 2 * point.macs / 1e9,
            "macs_ratio": point.macs / result.whole.macs,
        }
        encoder = {
            "encoder_macs": point.encoder_macs,
            "encoder_macs_ratio": point.encoder_macs / result.whole.encoder_macs,
        }
        rows.append({"task": result.task, "policy_kind": kind_of(point.policy), **row, **extra, **encoder})
    return rows


def has_decoder(result: Sweep) -> bool:
    """Whether the head costs more than a hundredth of the whole."""
    return result.whole.head_macs > 0.01 * result.whole.macs


def _table(result: Sweep) -> tuple[list[str], list[list[str]]]:
    columns: dict[str, Callable[[Point], str]] = {"policy": lambda point: point.policy}
    if len({point.kind for point in result.points}) > 1:
        columns["schedule"] = lambda point: point.kind or "-"
    if result.conditions["targets"] != MACS:
        columns["target"] = lambda point: target_text(point.target)
    for name, unit in result.units.items():
        columns[f"{name} {unit}".rstrip()] = lambda point, name=name, unit=unit: score(
            point.scores[name], unit
        )
    if has_decoder(result):
        columns["encoder GMACs"] = lambda point: f"{point.encoder_macs / 1e9:.4g}"
        columns["encoder %"] = lambda point: f"{100 * point.encoder_macs / result.whole.encoder_macs:.1f}"
        columns["decoder GMACs"] = lambda point: f"{point.head_macs / 1e9:.4g}"
    columns["GMACs (papers' GFLOPs)"] = lambda point: f"{point.macs / 1e9:.4g}"
    columns["GFLOPs"] = lambda point: f"{2 * point.macs / 1e9:.4g}"
    columns["MACs %"] = lambda point: f"{100 * point.macs / result.whole.macs:.1f}"
    if has_decoder(result):
        columns["encoder images/s"] = lambda point: _median(point.encoder_images_per_s)
    columns["images/s"] = lambda point: _median(point.images_per_s)
    columns["tokens after each block"] = lambda point: " ".join(map(str, point.tokens))
    return list(columns), [
        [cell(point) for cell in columns.values()] for point in (result.whole, *result.points)
    ]


def target_text(target: Target) -> str:
    """A share or a reduction as it is given on the command line."""
    if isinstance(target, Sequence):
        text = ",".join(f"{r:g}" for r in target)
        return f"({text})" if len(target) == 2 else f"[{text}]"
    return f"{target:g}"


def _median(figures: Sequence[float]) -> str:
    return f"{median(figures):.4g}" if figures else "-"


def _write_plots(sweeps: Sequence[Sweep], folder: Path) -> list[Path]:
    """Plots each task against all MACs and, if it has a decoder, against the encoder's; and all tasks side by
    side against all MACs. Returns the paths."""
    known = [
        result
        for result in sweeps
        if not any(None in point.scores[result.metric] for point in (result.whole, *result.points))
    ]
    paths: list[Path] = []
    for result in known:
        paths += draw_plots([plot_of(result)], folder / f"sweep_{result.task}")
        if has_decoder(result):
            of_encoder = plot_of(result, of_encoder=True)
            paths += draw_plots([of_encoder], folder / f"sweep_{result.task}_encoder")
    if len(known) > 1:
        paths += draw_plots([plot_of(result) for result in known], folder / "sweep")
    return paths


def plot_of(result: Sweep, metric: str | None = None, *, of_encoder: bool = False) -> Plot:
    """The plot of a metric (None: the main one) against all MACs, or the encoder's."""
    name = result.metric if metric is None else metric
    unit, where = result.units[name], result.conditions

    def curve(label: str, points: Sequence[Point]) -> Curve:
        scores = [
            [value for value in in_unit(point.scores[name], unit) if value is not None] for point in points
        ]
        return Curve(label, [point.encoder_macs if of_encoder else point.macs for point in points], scores)

    kinds = len({point.kind for point in result.points})
    points: dict[str, list[Point]] = {}
    for point in result.points:
        points.setdefault(curve_label(point.policy, point.kind if kinds > 1 else ""), []).append(point)
    curves = [curve(label, own) for label, own in points.items()]
    several = "; 1 run" if len(where["runs"]) == 1 else f"; {len(where['runs'])} runs"
    if any(len(point.scores[name]) > 1 for point in (result.whole, *result.points)):
        several += ", a band from the worst to the best"
    what = "score" if name == result.metric else name
    compute = "the encoder's compute" if of_encoder else "compute"
    return Plot(
        curves,
        curve("unmerged", [result.whole]),
        metric_words(name),
        f"{task_words(result.task)}: {what} against {compute}",
        unit,
        f"n = {where['samples']} samples of {_shortened(printable(str(where['split'])))}{several}",
        int(where["samples"]),
    )


def _shortened(split: str) -> str:
    """The end of a long path, for which a plot has no room."""
    return split if len(split) <= MOST_LETTERS else f"...{split[-MOST_LETTERS:]}"
