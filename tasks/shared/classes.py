"""Numbers of classes of heads."""

from pipeline.errors import ConfigError


def check_num_classes(task: str, num_classes: object, most: int, note: str = "") -> None:
    """Raises ConfigError unless `num_classes` is a whole number from 1 to `most`."""
    if not isinstance(num_classes, int) or not 1 <= num_classes <= most:
        raise ConfigError(
            f"{task}: num_classes is {num_classes!r}; give a whole number from 1 to {most}{note}"
        )
