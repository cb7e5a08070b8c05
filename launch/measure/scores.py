"""Names of scores: `METRIC`, or `METRIC/CLASS` for the score of one class."""

from collections.abc import Iterable


def of_classes(scores: Iterable[str]) -> list[str]:
    """Of metrics named `METRIC` and `METRIC/CLASS`, those of single classes."""
    return [name for name in scores if "/" in name]
