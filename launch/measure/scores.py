"""Names of scores: `METRIC`, or `METRIC/CLASS` for the score of a single class."""

from collections.abc import Iterable


def of_classes(scores: Iterable[str]) -> list[str]:
    """Names of the scores of single classes."""
    return [name for name in scores if "/" in name]
