"""Numbers of classes: of a head, and of the data that it reads."""

from collections.abc import Sequence

from pipeline.errors import ConfigError


def check_num_classes(task: str, num_classes: object, most: int, note: str = "") -> None:
    """Raises ConfigError unless `num_classes` is a whole number from 1 to `most`."""
    if not isinstance(num_classes, int) or not 1 <= num_classes <= most:
        raise ConfigError(
            f"{task}: num_classes is {num_classes!r}; give a whole number from 1 to {most}{note}"
        )


def check_head_fits(classes: Sequence[str], num_classes: int, kind: str = "classes") -> None:
    """Raises ConfigError where the data has more classes than the head. kind: what messages call them."""
    if (needed := len(classes)) > num_classes:
        raise ConfigError(
            f"the shards have {needed} {kind}, the head has {num_classes}; give head.num_classes={needed}"
        )
