"""Changes of colours that are more than a table of levels. N images of H x W pixels."""

import torch
from torch import Tensor

from pipeline.changes.greys import grey, torchvision_grey


def saturation(images: Tensor, values: Tensor) -> Tensor:
    """Pillow's Color. values: factor of the distance to the pixel's grey."""
    return _blended(grey(images).float(), images, values)


def sharpness(images: Tensor, values: Tensor) -> Tensor:
    """Pillow's Sharpness. values: factor of the distance to the image with all but its border smoothed."""
    pixels = images.int()
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26
    return _blended(smooth.float(), images, values)


def jitter_saturation(images: Tensor, values: Tensor) -> Tensor:
    """torchvision's adjust_saturation."""
    return _blended(torchvision_grey(images).floor(), images, values)


def to_grey(images: Tensor, values: Tensor) -> Tensor:
    """torchvision's rgb_to_grayscale."""
    return torchvision_grey(images).to(torch.uint8).expand_as(images)


def jitter_hue(images: Tensor, values: Tensor) -> Tensor:
    """torchvision's adjust_hue. values: the shift, in turns of the circle of hues."""
    colours = images.float() / 255
    high, low = colours.amax(1, keepdim=True), colours.amin(1, keepdim=True)
    spread = high - low
    red, green, blue = (
        (high - part) / torch.where(spread > 0, spread, 1) for part in colours.split(1, dim=1)
    )
    around = torch.where(
        high == colours[:, :1],
        blue - green,
        torch.where(high == colours[:, 1:2], 2 + red - blue, 4 + green - red),
    )
    hue = (around / 6 + _each(values)).remainder(1) * 6
    # each channel falls from the highest value to the lowest and back, a third of the circle apart
    places = 5 - 2 * torch.arange(3, device=images.device)
    place = (places[:, None, None] + hue).remainder(6)
    turned = high - spread * torch.minimum(place, 4 - place).clamp(0, 1)
    return (turned * (256 - 1e-3)).to(torch.uint8)


def _blended(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """base + factor * (images - base), cut to 8 bits; factor [N, 1]."""
    return (base + _each(factor) * (images.float() - base)).clamp(0, 255).to(torch.uint8)


def _each(values: Tensor) -> Tensor:
    """[N, 1] -> [N, 1, 1, 1]"""
    return values[..., None, None]


KERNELS = {
    "saturation": saturation,
    "sharpness": sharpness,
    "jitter_saturation": jitter_saturation,
    "jitter_hue": jitter_hue,
    "to_grey": to_grey,
}
