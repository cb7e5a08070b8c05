"""Tables as Markdown: a terminal, a log and a report take the same text."""

from collections.abc import Sequence


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table: the first column to the left, the others, which are numbers, to the right."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(_aligned(line, widths)) + " |" for line in [lines[0], rule, *lines[1:]])


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """One value as it is; several as their mean and half their range."""
    mean = sum(values) / len(values)
    text = form.format(mean)
    return text if len(values) == 1 else f"{text} ± {form.format((max(values) - min(values)) / 2)}"
