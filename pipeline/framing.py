"""Which part of a picture becomes an image of a batch: drawn where the picture's size is known, and cut out
where its pixels are."""

from dataclasses import dataclass, replace

from torch import Tensor
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture, and how it is resized.

    size: (height, width) of the image. interpolation: `bilinear` or `bicubic`, smoothed where it shrinks.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    interpolation: str

    def __call__(self, picture: Tensor) -> Tensor:
        """uint8 [3, H, W] -> uint8 [3, *size], on the same device."""
        window = F.crop(picture, self.top, self.left, self.height, self.width)
        # what a GPU decodes has its colours apart, and it is resized there as it is
        window = as_stored(window) if window.device.type == "cpu" else window
        mode = F.InterpolationMode(self.interpolation)
        return F.resize(window, list(self.size), interpolation=mode, antialias=True)

    def scaled(self, scale: int, picture: Tensor) -> Tensor:
        """uint8 [3, *size], out of the picture that was divided by `scale`, uint8
        [3, ceil(H / scale), ceil(W / scale)]."""
        top, left = round(self.top / scale), round(self.left / scale)
        bottom, right = (
            max(start + 1, round(end / scale))
            for start, end in ((top, self.top + self.height), (left, self.left + self.width))
        )
        return replace(self, top=top, left=left, height=bottom - top, width=right - left)(picture)


@dataclass(frozen=True)
class Framing:
    """A window, and whether the image is then mirrored and turned upside down."""

    window: Window
    mirrored: bool
    upside_down: bool

    def __call__(self, picture: Tensor) -> Tensor:
        """uint8 [3, H, W] -> uint8 [3, *size], on the same device."""
        return flipped(self.window(picture), self.mirrored, self.upside_down)


def flipped(image: Tensor, mirrored: bool, upside_down: bool) -> Tensor:
    """The image [..., H, W], itself where it is not flipped."""
    image = image.flip(-1) if mirrored else image
    return image.flip(-2) if upside_down else image


def as_stored(window: Tensor) -> Tensor:
    """The window [3, H, W] of an image in memory of its own, with the colours of a pixel side by side, as
    decoders give them. torchvision resizes it in two thirds of the time, to the same pixels."""
    return window.permute(1, 2, 0).contiguous().permute(2, 0, 1)
