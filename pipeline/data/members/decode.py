"""Decodes the bytes of a member by its suffix, from a closed table. A shard is a stranger's: sizes are
checked before decoding."""

import io
import json
import re
import sys
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode

from pipeline.data.members.turns import UPRIGHT, turn_in, turned
from pipeline.errors import SampleError, first_few

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


def decode_image(data: bytes, *, upright: bool = True) -> Tensor:
    """uint8 [3, H, W] in RGB, whatever colours the file has: 16 bits lose the lower eight, alpha is left out.
    upright: whether it is turned as its EXIF says. Raises SampleError."""
    *_, turn = _header(data)
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
    return turned(image, turn) if upright and turn != UPRIGHT else image


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


def decode_captions(data: bytes, field: str = "captions") -> tuple[str, ...]:
    """The texts of {"captions": [...]}, one or more; of another field, which may also be one text, as
    img2dataset's `caption`. Raises SampleError."""
    known = decode_json(data)
    if not isinstance(known, dict) or field not in known:
        names = list(known) if isinstance(known, dict) else []
        there = first_few([f"{name:.40}" for name in names], 8, ", ") or "none"
        raise SampleError(
            f"json does not hold captions: it has no field '{field}' (fields: {there}); "
            "see data.caption_field"
        )
    captions = known[field]
    if isinstance(captions, str) and field != "captions":
        captions = [captions] if captions.strip() else []
    if captions in (None, []):
        raise SampleError(f"json: '{field}' is empty: the image has no caption")
    if not isinstance(captions, list) or not all(isinstance(text, str) and text.strip() for text in captions):
        raise SampleError(f"json: '{field}' is not a list of texts")
    return tuple(captions)


def decode_text(data: bytes) -> tuple[str, ...]:
    """The one caption in a member txt, in UTF-8. Raises SampleError."""
    if len(data) > MAX_JSON:
        raise SampleError(f"txt has {len(data)} bytes; the limit is {MAX_JSON}")
    try:
        text = data.decode("utf-8-sig").strip()
    except ValueError as err:
        raise SampleError(f"txt is not UTF-8: {err}") from err
    if not text:
        raise SampleError("txt is empty: the image has no caption")
    return (text,)


def decode_facts(data: bytes) -> Any:
    """What a member json holds: the captions of {"captions": [...]}, else whatever another program wrote.
    Raises SampleError."""
    known = decode_json(data)
    return decode_captions(data) if isinstance(known, dict) and "captions" in known else known


def decode_json(data: bytes) -> Any:
    """What a member json holds. Raises SampleError."""
    if len(data) > MAX_JSON:
        raise SampleError(f"json has {len(data)} bytes; the limit is {MAX_JSON}")
    try:
        known = json.loads(data)
        # half a surrogate pair is no text: nothing could print it
        json.dumps(known, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as err:
        raise SampleError(f"json does not read: {err}") from err
    return known


def check_header(data: bytes) -> tuple[int, int]:
    """(height, width) of an image by its header alone: a small file can promise a picture that fills the
    memory. Raises SampleError."""
    return _header(data)[:2]


def _header(data: bytes) -> tuple[int, int, int]:
    """Height, width and orientation (see turns.py) of an image, by one look at its header. Raises
    SampleError."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image,
        ):
            width, height = image.size
            turn = turn_in(image)
    except UnidentifiedImageError:
        raise SampleError(f"{len(data)} bytes are not a JPEG, PNG or WebP image") from None
    except Image.DecompressionBombError as err:
        raise SampleError(f"image bomb: {err}") from err
    except (OSError, ValueError, SyntaxError) as err:
        raise SampleError(f"image header does not read: {err}") from err
    if width * height > MAX_PIXELS:
        raise SampleError(f"image bomb: {width}x{height} pixels; the limit is {MAX_PIXELS}")
    return height, width, turn


DECODERS = {
    **dict.fromkeys(IMAGES, decode_image),
    "cls": decode_class,
    "json": decode_facts,
    "seg.png": decode_mask,
}
