"""Decodes the bytes of a member by its suffix, from a closed table. A shard is a stranger's: sizes are
checked before decoding."""

import io
import json
import re
import sys
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode

from pipeline.errors import SampleError

IMAGES = ("jpg", "jpeg", "png", "webp")
MAX_PIXELS = 1 << 26
"""Pixels of the largest image that is decoded (64 million); a header that promises more is refused as an
image bomb."""
MAX_JSON = 1 << 20
MAX_CLASS = 1_000_000
_HIGH_BYTE = 1 if sys.byteorder == "little" else 0
_PNG_DEPTH = 24
"""Position of the byte of a PNG that holds its bits per channel."""
_CLASS = re.compile(rb"\s*([0-9]{1,9})\s*")


def decode_image(data: bytes) -> Tensor:
    """uint8 [3, H, W] in RGB, whatever colours the file has. Raises SampleError."""
    check_header(data)
    try:
        image = torchvision_decode(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB
        )
    except RuntimeError as err:
        raise SampleError(f"image does not decode: {str(err).splitlines()[0].rpartition(', ')[2]}") from err
    if image.dtype == torch.uint16:
        # the high bytes, without a wider copy of the image
        image = image.contiguous().view(torch.uint8)[..., _HIGH_BYTE::2].contiguous()
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise SampleError(
            f"image decodes to {image.dtype} {list(image.shape)} instead of three channels (is it animated?)"
        )
    return image


def decode_mask(data: bytes) -> Tensor:
    """uint8 [H, W]: class numbers of a grey or palette image. Raises SampleError."""
    check_header(data)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in ("L", "P", "1"):
                raise SampleError(
                    f"mask is a PNG of mode {image.mode}, which holds colours, not labels; give 8-bit "
                    "grey or palette"
                )
            # Pillow would stretch the labels 0..15 of fewer bits to 0..255
            if image.mode == "L" and data[_PNG_DEPTH] != 8:
                raise SampleError(
                    f"mask is a grey PNG of {data[_PNG_DEPTH]} bits; give 8-bit grey or palette"
                )
            return torch.from_numpy(np.array(image, dtype=np.uint8))
    except (OSError, ValueError, SyntaxError) as err:
        raise SampleError(f"mask does not decode: {err}") from err


def decode_class(data: bytes, num_classes: int = MAX_CLASS) -> int:
    """A class number in ASCII digits, below num_classes. Raises SampleError."""
    match = _CLASS.fullmatch(data)
    if match is None:
        raise SampleError(f"class {data[:20]!r} is not a number")
    label = int(match[1])
    if label >= num_classes:
        raise SampleError(f"class {label} is not below {num_classes}, the number of classes")
    return label


def decode_captions(data: bytes) -> tuple[str, ...]:
    """The texts of {"captions": [...]}, one or more. Raises SampleError."""
    if len(data) > MAX_JSON:
        raise SampleError(f"json has {len(data)} bytes; the limit is {MAX_JSON}")
    try:
        captions = json.loads(data)["captions"]
        # half a surrogate pair is no text: nothing could print it
        json.dumps(captions, ensure_ascii=False).encode()
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise SampleError(f"json does not hold captions: {err}") from err
    if captions == []:
        raise SampleError("json: 'captions' is empty: the image has no caption")
    if not isinstance(captions, list) or not all(isinstance(text, str) and text.strip() for text in captions):
        raise SampleError("json: 'captions' is not a list of texts")
    return tuple(captions)


def check_header(data: bytes) -> tuple[int, int]:
    """(height, width) of an image by its header alone: a small file can promise a picture that fills the
    memory. Raises SampleError."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image,
        ):
            width, height = image.size
    except UnidentifiedImageError:
        raise SampleError(f"{len(data)} bytes are not a JPEG, PNG or WebP image") from None
    except Image.DecompressionBombError as err:
        raise SampleError(f"image bomb: {err}") from err
    except (OSError, ValueError, SyntaxError) as err:
        raise SampleError(f"image header does not read: {err}") from err
    if width * height > MAX_PIXELS:
        raise SampleError(f"image bomb: {width}x{height} pixels; the limit is {MAX_PIXELS}")
    return height, width


DECODERS = {
    **dict.fromkeys(IMAGES, decode_image),
    "cls": decode_class,
    "json": decode_captions,
    "seg.png": decode_mask,
}
