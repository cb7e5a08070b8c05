"""The part of a report about classes: the score of each, a matrix of what is taken for what where they are
few, and the most frequent confusions."""

from collections.abc import Sequence

from launch.report.tables import confused_pairs
from launch.report.words import metric_words, task_words
from launch.run_report.evaluations import Evaluation, TaskResult
from launch.run_report.markup import Markup, scrolled, table, text

MOST_IN_MATRIX = 30
"""Classes of a matrix that a page has room for."""
MOST_PAIRS = 15
"""Pairs of classes in the table of confusions."""
RIGHT, WRONG = "0,114,178", "213,94,0"
DEEPEST = 0.75
"""Opacity of a cell with all of its row, on which dark text is read."""


def classes_of(evaluation: Evaluation) -> str:
    """Empty where nothing is known of single classes."""
    return "".join(map(_of_task, evaluation.tasks))


def _of_task(result: TaskResult) -> str:
    if not (result.confusion or result.of_class):
        return ""
    tables = f'<div class="beside">{_each(result)}{_pairs(result)}</div>'
    return f"<h4>{text(task_words(result.task))}</h4>{_matrix(result)}{tables}"


def _unit(result: TaskResult) -> str:
    """What a count of the matrix counts."""
    return "pixels" if "IoU" in result.of_class else "samples"


def _matrix(result: TaskResult) -> str:
    if not 2 <= len(result.confusion) <= MOST_IN_MATRIX:
        return ""
    told = f"Per cent of the {_unit(result)} of each label (rows) that are predicted as each class (columns)"
    names = "".join(f'<th scope="col">{text(name)}</th>' for name in result.classes)
    rows = "".join(_row(name, i, row) for i, (name, row) in enumerate(_named_rows(result)))
    head = f'<tr><th scope="col">label</th>{names}<th scope="col" class="n">{_unit(result)}</th></tr>'
    return scrolled(told, f'<table class="matrix"><thead>{head}</thead><tbody>{rows}</tbody></table>')


def _named_rows(result: TaskResult) -> Sequence[tuple[str, list[int]]]:
    return list(zip(result.classes, result.confusion, strict=False))


def _row(name: str, label: int, counts: Sequence[int]) -> str:
    of = sum(counts)
    cells = "".join(
        f'<td style="background:rgba({RIGHT if i == label else WRONG},{DEEPEST * count / of:.3f})">'
        f"{_share(count, of)}</td>"
        if count
        else "<td></td>"
        for i, count in enumerate(counts)
    )
    return f'<tr><th scope="row">{text(name)}</th>{cells}<td>{of:,}</td></tr>'


def _share(count: int, of: int) -> str:
    """Per cent without decimals; `<1` (escaped) for less than half of one."""
    return f"{100 * count / of:.0f}" if 200 * count >= of else "&lt;1"


def _pairs(result: TaskResult) -> str:
    rows = [
        [
            result.classes[label],
            result.classes[found],
            f"{count:,}",
            f"{100 * count / sum(result.confusion[label]):.1f}",
        ]
        for count, label, found in confused_pairs(result.confusion, MOST_PAIRS)
    ]
    columns = ["label", "taken for", _unit(result), "% of the label"]
    return table("The most frequent confusions", columns, rows, numbers=2) if rows else ""


def _each(result: TaskResult) -> str:
    """A table of the scores of each class, those with the lowest first score at the top; of many classes the
    rest is folded."""
    if not result.of_class:
        return ""
    first, *_ = result.of_class
    key = {i: -1.0 if own is None else own for i, own in enumerate(result.of_class[first])}
    order = sorted(key, key=lambda i: (result.of_class[first][i] is None, key[i], i))
    rows = [_class_row(result, first, i) for i in order]
    columns = ["class", *(f"{metric_words(metric)} (%)" for metric in result.of_class)]
    top = table("Scores of each class, the lowest first", columns, rows[:MOST_IN_MATRIX], numbers=1)
    if len(rows) <= MOST_IN_MATRIX:
        return top
    rest = table("Scores of the other classes", columns, rows[MOST_IN_MATRIX:], numbers=1)
    more = f"<summary>{len(rows) - MOST_IN_MATRIX} more classes</summary>"
    return f"<div>{top}<details>{more}{rest}</details></div>"


def _class_row(result: TaskResult, first: str, i: int) -> list[str]:
    values = [own[i] for own in result.of_class.values()]
    cells = ["n/a" if own is None else f"{100 * own:.1f}" for own in values]
    share = min(max(result.of_class[first][i] or 0.0, 0.0), 1.0)
    bar = f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'
    return [result.classes[i], Markup(f"{bar} {cells[0]}"), *cells[1:]]
