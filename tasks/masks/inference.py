"""Options of the evaluation of masks: windows, scales, mirror images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError

Size = tuple[int, int]
"""(height, width)"""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How the pixels of an image of any size get their classes. A side is a number of pixels, or (height,
    width)."""

    mode: str = "whole"
    """`whole`: the image in one piece. `slide`: windows of crop_size at every stride, the last ones moved
    back into the image; where windows overlap, their logits are averaged. An image that is smaller than the
    window is one window of its own size."""
    crop_size: int | Size | None = None
    stride: int | Size | None = None
    scales: Sequence[float] = (1.0,)
    """Factors by which the image is resized. Of several views (scales, mirror images), the probabilities are
    averaged."""
    flip: bool = False
    """Whether each scale is seen mirrored as well."""

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise ConfigError(f"inference.mode is {self.mode!r}; give 'whole' or 'slide'")
        sides = {"crop_size": self.crop_size, "stride": self.stride}
        if self.mode == "whole" and (given := [name for name, value in sides.items() if value is not None]):
            raise ConfigError(
                f"inference.{given[0]} is given, but mode is 'whole'; give mode='slide', or leave it out"
            )
        if self.mode == "slide" and any(step > side for side, step in zip(*self.slide, strict=True)):
            raise ConfigError(
                f"inference.stride {self.stride} leaves gaps between windows of {self.crop_size}; give a "
                "smaller one"
            )
        _check_views(self.scales, self.flip)

    @property
    def slide(self) -> tuple[Size, Size]:
        """Window and stride, as (height, width)."""
        return _pair("crop_size", self.crop_size), _pair("stride", self.stride)


def _pair(name: str, value: Any) -> Size:
    sides = (
        [value, value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
    )
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(
            f"inference.{name} is {value!r}; mode='slide' needs pixels, or (height, width), above 0"
        )
    return sides[0], sides[1]


def _check_views(scales: Any, flip: Any) -> None:
    numbers = isinstance(scales, list | tuple) and all(
        isinstance(s, int | float) and not isinstance(s, bool) and s > 0 for s in scales
    )
    if not numbers or not scales:
        raise ConfigError(f"inference.scales is {scales!r}; give factors above 0, such as [0.5, 1.0, 1.5]")
    if not isinstance(flip, bool):
        raise ConfigError(f"inference.flip is {flip!r}; give true or false")
