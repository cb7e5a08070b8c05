"""Which stored images are decoded once their windows are known: JPEGs of three 8-bit channels, whole to their
end, that no EXIF turns."""

import io
import warnings
from collections.abc import Callable
from functools import partial

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from pipeline.coded import Jpeg
from pipeline.data.members.decode import MAX_PIXELS, decode_image
from pipeline.data.members.scaled import Scalable
from pipeline.data.members.turns import UPRIGHT, turn_in

START, END = b"\xff\xd8\xff", b"\xff\xd9"
TAIL = 64
"""Last bytes of a file among which its end is looked for; some cameras write zeros behind it."""
SAMPLINGS = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)}
"""Pixels that share a colour, per direction, which nvJPEG knows."""
YCBCR = 1
"""Adobe's mark of colours as JFIF has them; others are left to the worker."""


def image_reader(decode: str, upright: bool) -> Callable[[bytes], Tensor | Jpeg | Scalable]:
    """What makes of a stored image its pixels, uint8 [3, H, W], or what they are made of later, where a
    plain JPEG is: with decode `cuda` by the device, with `scaled` by the worker. It raises SampleError.
    upright: whether EXIF turns images."""
    if decode == "worker":
        return partial(decode_image, upright=upright)
    return partial(_later_or_decoded, scaled=decode == "scaled", upright=upright)


def _later_or_decoded(data: bytes, scaled: bool, upright: bool) -> Tensor | Jpeg | Scalable:
    if (found := jpeg_in(data, upright)) is None:
        return decode_image(data, upright=upright)
    return Scalable(found) if scaled else found


def jpeg_in(data: bytes, upright: bool) -> Jpeg | None:
    """The file, by its header and its end; None for what a worker has to decode, or to refuse."""
    if not data.startswith(START) or END not in data[-TAIL:]:
        return None
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=("JPEG",)) as image,
        ):
            width, height = image.size
            plain = _is_plain(image) and width * height <= MAX_PIXELS
            turns = upright and turn_in(image) != UPRIGHT
    except Exception:  # noqa: BLE001 - the worker's decoder says what is wrong
        return None
    return Jpeg(data, height, width) if plain and not turns else None


def _is_plain(image: Image.Image) -> bool:
    """Whether an opened JPEG has brightness and two colours as JFIF orders them."""
    if not isinstance(image, JpegImageFile) or image.mode != "RGB" or image.bits != 8:
        return False
    (first, across, down, _), *colours = image.layer
    named_rgb = bytes(layer[0] for layer in image.layer) == b"RGB"
    usual = (across, down) in SAMPLINGS and all(layer[1:3] == (1, 1) for layer in colours)
    return usual and not named_rgb and image.info.get("adobe_transform", YCBCR) == YCBCR
