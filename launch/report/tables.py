"""Tables in Markdown, for terminals, logs and reports alike."""

from collections.abc import Mapping, Sequence

from launch.measure.scores import of_classes
from pipeline.errors import counted, printable


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table. The first column is aligned to the left; the others, which are numbers, to
    the right."""
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
    """One value, or the mean of several and half their range; n/a if a value is None."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "n/a"
    text = form.format(sum(known) / len(known))
    return text if len(known) == 1 else f"{text} ± {form.format((max(known) - min(known)) / 2)}"


def in_unit(values: Sequence[float | None], unit: str) -> list[float | None]:
    """The values in the unit: multiplied by 100 for `%`, else unchanged."""
    return [None if value is None else 100 * value if unit == "%" else value for value in values]


def score(values: Sequence[float | None], unit: str) -> str:
    """The values of a metric in its unit, see `spread`."""
    return spread(in_unit(values, unit), "{:.2f}" if unit == "%" else "{:.3f}")


MOST_CLASSES, LOWEST_CLASSES = 40, 20
"""Rows of a table of classes on the terminal, and of one that has only the lowest scores."""


def class_table(scores: Mapping[str, float | None], classes: Sequence[str]) -> str:
    """A table with a row for each class that has a score, of the metrics `METRIC/i`, which are in [0, 1];
    empty where there are none. Of more than MOST_CLASSES it has the lowest, and says so. classes: name of
    each class i."""
    metrics = list(dict.fromkeys(name.split("/")[0] for name in of_classes(scores)))
    shares = {i: [scores.get(f"{metric}/{i}") for metric in metrics] for i in range(len(classes))}
    known = {i: values for i, values in shares.items() if any(value is not None for value in values)}
    if not known:
        return ""
    lowest = sorted(known, key=lambda i: [2.0 if value is None else value for value in known[i]])
    shown = sorted(lowest[:LOWEST_CLASSES]) if len(known) > MOST_CLASSES else list(known)
    rows = [[classes[i], *(score([value], "%") for value in known[i])] for i in shown]
    table = markdown(["class", *(f"{metric} %" for metric in metrics)], rows)
    unseen = f"without a sample, and left out: {len(classes) - len(known)} of {len(classes)} classes"
    if len(shown) < len(known):
        table += f"\nthe {len(shown)} lowest of {len(known)} classes; --out has all"
    return table if len(known) == len(classes) else f"{table}\n{unseen}"


def confused_pairs(matrix: Sequence[Sequence[int]], most: int) -> list[tuple[int, int, int]]:
    """(count, label, prediction) of the pairs of classes of which one is taken for the other, the most
    frequent first. matrix: rows are labels, columns predictions."""
    pairs = [
        (count, label, found)
        for label, row in enumerate(matrix)
        for found, count in enumerate(row)
        if count and label != found
    ]
    return sorted(pairs, key=lambda pair: (-pair[0], *pair[1:]))[:most]


def most_confused(
    matrix: Sequence[Sequence[int]], classes: Sequence[str], of: str, most: int = 5
) -> list[str]:
    """Lines of the pairs of classes of which one is taken for the other most often. of: what is counted."""
    names = [printable(name) for name in classes]
    names += [str(i) for i in range(len(names), len(matrix))]
    return [
        f"{counted(count, of)} of {names[label]} taken for {names[found]}"
        for count, label, found in confused_pairs(matrix, most)
    ]
