"""The grey of a colour, as Pillow and as torchvision round it."""

from torch import Tensor


def grey(images: Tensor) -> Tensor:
    """Pillow's: uint8 [N, 3, H, W] -> int32 [N, 1, H, W] in [0, 255]."""
    red, green, blue = images.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def torchvision_grey(images: Tensor) -> Tensor:
    """torchvision's, not rounded: uint8 [N, 3, H, W] -> float32 [N, 1, H, W] in [0, 255]."""
    red, green, blue = images.float().split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
