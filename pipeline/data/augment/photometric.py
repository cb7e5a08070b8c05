"""MMSegmentation's photometric distortion, on the tensors of a picture: brightness, contrast, saturation and
hue, each with an even chance.

Draws come from NumPy's global generator, in MMSegmentation's order, so that the same draws give the same
pixels. Pixels are 8 bits between the steps, as there, and of a hue there are 180. On the way back from hues
OpenCV cuts where it has vector instructions, and rounds in what they leave over of a row; here all is cut, so
that pixels there differ by 1 of 255 a step.
"""

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS = 32.0
"""Largest shift of a channel, whose values go to 255."""
FACTORS = (0.5, 1.5)
"""Range of the factors of contrast and saturation."""
HUES = 180
HUE_SHIFT = 18
_BITS = 12
"""Bits behind the point of the fixed-point numbers in which OpenCV divides."""


def distort(image: Tensor) -> Tensor:
    """The distorted image. image: uint8 [3, H, W] in RGB. Contrast changes before saturation and hue, or
    after them."""
    if _chance():
        image = _scaled(image, shift=np.random.uniform(-BRIGHTNESS, BRIGHTNESS))
    early = _chance()
    image = _contrast(image) if early else image
    if _chance():
        hue, saturation, value = to_hsv(image)
        image = to_rgb(hue, _scaled(saturation, factor=np.random.uniform(*FACTORS)), value)
    if _chance():
        hue, saturation, value = to_hsv(image)
        image = to_rgb((hue + np.random.randint(-HUE_SHIFT, HUE_SHIFT)) % HUES, saturation, value)
    return image if early else _contrast(image)


def to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 [3, H, W] -> hue int32 in [0, 180), saturation and value uint8, each [H, W]; rounded as OpenCV
    rounds them."""
    red, green, blue = image.int().unbind()
    value, spread = image.amax(0).int(), (image.amax(0) - image.amin(0)).int()
    other = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    around = torch.where(value == red, green - blue, other)
    hue = _fixed(around, HUES / 6, spread)
    return (
        torch.where(hue < 0, hue + HUES, hue),
        _fixed(spread, 255, value).to(torch.uint8),
        value.to(torch.uint8),
    )


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The inverse of `to_hsv` up to rounding: uint8 [3, H, W]."""
    around, vivid, high = hue * (6 / HUES), saturation * (1 / 255), value * (1 / 255)
    sector = around.trunc()
    rest = around - sector
    low, falling, rising = high * (1 - vivid), high * (1 - vivid * rest), high * (1 - vivid + vivid * rest)
    red = _by_sector(sector, high, falling, low, low, rising, high)
    green = _by_sector(sector, rising, high, high, falling, low, low)
    blue = _by_sector(sector, low, low, rising, high, high, falling)
    return torch.stack([red, green, blue]).mul_(255).to(torch.uint8)


def _by_sector(sector: Tensor, *values: Tensor) -> Tensor:
    """Each pixel's value of `values`, chosen by its sector: a sixth of the circle of hues."""
    chosen = values[5]
    for number, value in enumerate(values[:5]):
        chosen = torch.where(sector == number, value, chosen)
    return chosen


def _fixed(number: Tensor, factor: float, divisor: Tensor) -> Tensor:
    """round(factor * number / divisor), 0 where the divisor is; the quotient factor / divisor is rounded
    first."""
    quotients = torch.tensor(
        [0, *(round(factor * (1 << _BITS) / d) for d in range(1, 256))], dtype=torch.int32
    )
    return (number * quotients[divisor] + (1 << _BITS - 1)) >> _BITS


def _contrast(image: Tensor) -> Tensor:
    return _scaled(image, factor=np.random.uniform(*FACTORS)) if _chance() else image


def _scaled(channel: Tensor, factor: float = 1.0, shift: float = 0.0) -> Tensor:
    """factor * channel + shift, uint8, clipped to [0, 255] and truncated."""
    return (channel.float() * factor + shift).clamp(0, 255).to(torch.uint8)


def _chance() -> bool:
    return bool(np.random.randint(2))
