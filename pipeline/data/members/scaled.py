"""JPEGs that are decoded once it is known which window of them is wanted: smaller, where the window becomes a
much smaller image.

libjpeg can decode to a half, a quarter or an eighth of the size. It leaves out the fine detail of each block
of pixels, which the image would not show, and most of the work.
"""

import io
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.coded import Jpeg
from pipeline.data.members.decode import decode_image
from pipeline.errors import SampleError
from pipeline.framing import Window

SCALES = (8, 4, 2)


class Scalable:
    """A JPEG of height x width pixels that `jpeg_in` has found plain. What is decoded of it is kept: views of
    a sample share it."""

    def __init__(self, jpeg: Jpeg):
        self.shape = torch.Size((3, jpeg.height, jpeg.width))
        self._data = jpeg.data
        self._decoded: dict[int, Tensor] = {}

    def cut(self, window: Window) -> Tensor:
        """uint8 [3, *window.size]: the window of the picture, resized. Where it is at least twice as large as
        that in both directions, it comes from the picture at the smallest scale at which it is no smaller.
        Its edges are rounded to pixels of that scale. Raises SampleError."""
        scale = scale_for(window)
        return window.scaled(scale, self._at(scale))

    def _at(self, scale: int) -> Tensor:
        if scale not in self._decoded:
            data = self._data
            self._decoded[scale] = decode_image(data, upright=False) if scale == 1 else _decoded(data, scale)
        return self._decoded[scale]


def scale_for(window: Window) -> int:
    """The number by which a picture is divided for a window of it."""
    height, width = window.size
    fits = (scale for scale in SCALES if window.height >= scale * height and window.width >= scale * width)
    return next(fits, 1)


def _decoded(data: bytes, scale: int) -> Tensor:
    """uint8 [3, ceil(H / scale), ceil(W / scale)]. Raises SampleError."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=("JPEG",)) as image,
        ):
            width, height = image.size
            image.draft("RGB", (width // scale, height // scale))
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as err:
        raise SampleError(f"image does not decode: {err}") from err
