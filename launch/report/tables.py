"""Tables as Markdown: a terminal, a log and a report take the same text."""

from collections.abc import Mapping, Sequence

from launch.measure.scores import of_classes
from pipeline.errors import printable


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table: the first column to the left, the others, which are numbers, to the
    right."""
    lines = [[printable(cell) for cell in line] for line in (columns, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join(_aligned(line, widths)) + " |" for line in [lines[0], rule, *lines[1:]]
    )


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        line[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
    ]


def spread(values: Sequence[float | None], form: str = "{:.2f}") -> str:
    """One value as it is; several as their mean and half their range; n/a where one is."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "n/a"
    text = form.format(sum(known) / len(known))
    return text if len(known) == 1 else f"{text} ± {form.format((max(known) - min(known)) / 2)}"


def in_unit(values: Sequence[float | None], unit: str) -> list[float | None]:
    """Shares in percent where that is the unit; others as they are."""
    return [None if value is None else 100 * value if unit == "%" else value for value in values]


def score(values: Sequence[float | None], unit: str) -> str:
    """The spread of a metric's values in its unit."""
    return spread(in_unit(values, unit), "{:.2f}" if unit == "%" else "{:.3f}")


def class_table(scores: Mapping[str, float | None], classes: Sequence[str]) -> str:
    """One row per class for the metrics named `METRIC/i`, which are shares; empty where there are none.
    classes: names, by i."""
    metrics = list(dict.fromkeys(name.split("/")[0] for name in of_classes(scores)))
    if not metrics:
        return ""
    shares = {i: [scores.get(f"{metric}/{i}") for metric in metrics] for i in range(len(classes))}
    rows = [[classes[i], *(score([value], "%") for value in values)] for i, values in shares.items()]
    return markdown(["class", *(f"{metric} %" for metric in metrics)], rows)
