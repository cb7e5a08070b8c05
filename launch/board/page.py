"""A board as one HTML page: no other file, no network, no script."""

from collections.abc import Iterator, Sequence
from itertools import count

from launch.board.protocol import protocol
from launch.board.rows import table_of
from launch.measure.points import DIVERGENCE, Sweep
from launch.report.sweep_files import plain_sweep
from launch.report.words import task_words
from launch.run_report.curves import sweep_chart
from launch.run_report.markup import page, table, text


def page_of(results: Sequence[Sweep]) -> str:
    """The page: for each task the table, the charts, the reasons of what is left out, and the protocol."""
    numbers, sections = count(), {}
    for result in results:
        name = task_words(result.task)
        sections |= {
            name: _table(result) + _charts(result, numbers),
            f"{name}: left out": _listed(table_of(result).reasons),
            f"{name}: protocol": _listed(protocol(result)),
        }
    runs = dict.fromkeys(run for result in results for run in result.conditions["runs"])
    return page("Board of merge policies", ", ".join(runs), sections)


def shown_metrics(result: Sweep) -> list[str]:
    """The metrics that are drawn against compute: the main one, and how far from the unmerged model; none
    that is n/a somewhere."""
    names = [result.metric, *(name for name in (DIVERGENCE, "error") if name in result.units)]
    points = (result.whole, *result.points)
    return [name for name in dict.fromkeys(names) if not any(None in point.scores[name] for point in points)]


def _table(result: Sweep) -> str:
    found = table_of(result)
    told = "Each policy at each point; the kinds are compared apart, the highest first"
    return table(told, found.columns, found.rows, numbers=4 if "schedule" in found.columns else 3)


def _charts(result: Sweep, numbers: Iterator[int]) -> str:
    plain = plain_sweep(result)
    charts = [sweep_chart(plain, metric, "", numbers) for metric in shown_metrics(result)]
    return f'<div class="charts">{"".join(charts)}</div>'


def _listed(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f"<ol>{items}</ol>" if lines else ""
