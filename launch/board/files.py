"""The files of a board: for programs (board.json), as text (board.md), as plot (board.png, board.svg) and as
a page (index.html)."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.board.page import page_of, shown_metrics
from launch.board.protocol import protocol
from launch.board.rows import table_of
from launch.measure.points import Sweep
from launch.report.sweep_files import plain_sweep, plot_of
from launch.report.sweep_plot import draw_plots
from launch.report.tables import markdown
from launch.report.words import task_words
from pipeline.errors import ConfigError, printable
from pipeline.files import write_text
from pipeline.version import description


def text_of(result: Sweep) -> str:
    """The board of a task as Markdown: table, reasons, protocol."""
    table = table_of(result)
    reasons = [f"{number}. {printable(reason)}" for number, reason in enumerate(table.reasons, 1)]
    parts = [
        f"## {task_words(result.task)}",
        markdown(table.columns, table.rows),
        *(["Left out:\n\n" + "\n".join(reasons)] if reasons else []),
        "Protocol:\n\n" + "\n".join(f"* {printable(line)}" for line in protocol(result)),
    ]
    return "\n\n".join(parts)


def plain_board(results: Sequence[Sweep]) -> dict[str, Any]:
    """The board as JSON can hold it: each task as in sweep.json, with its protocol."""
    tasks = [{**plain_sweep(result), "protocol": protocol(result)} for result in results]
    return {"dtem": description(), "tasks": tasks}


def write_board(results: Sequence[Sweep], folder: Path) -> list[Path]:
    """Writes the files, each as a whole, board.json last: where it is new, all are. Without matplotlib the
    plots are left out, with a word. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        write_text(folder / "index.html", page_of(results)),
        write_text(folder / "board.md", "\n\n".join(["# Board", *map(text_of, results)]) + "\n"),
    ]
    try:
        for result in results:
            stem = folder / ("board" if len(results) == 1 else f"board_{result.task}")
            if plots := [plot_of(result, metric) for metric in shown_metrics(result)]:
                written += draw_plots(plots, stem)
    except ConfigError as err:
        print(f"the plots are left out: {err}", file=sys.stderr)
    plain = json.dumps(plain_board(results), indent=1)
    return [*written, write_text(folder / "board.json", plain)]
