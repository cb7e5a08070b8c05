"""Pictures that a camera has turned: their EXIF says how the stored pixels become upright."""

import io
import warnings

from PIL import Image
from torch import Tensor

from pipeline.data.members.masks import size_mismatch
from pipeline.errors import SampleError

UPRIGHT = 1
TAG = 0x0112
_TRANSPOSED = {5, 6, 7, 8}
_MIRRORED = {2, 3, 6, 7}
_UPSIDE_DOWN = {3, 4, 7, 8}


def turn_of(data: bytes) -> int:
    """The orientation, 1 to 8, that the EXIF of a JPEG, PNG or WebP gives; 1 (upright) where it gives none,
    or does not read. Only the header is read."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image,
        ):
            return turn_in(image)
    except Exception:  # noqa: BLE001 - whatever a stranger's bytes make of Pillow's reader
        return UPRIGHT


def turn_in(image: Image.Image) -> int:
    """`turn_of` an image that Pillow has opened."""
    try:
        if not (known := image.info.get("exif")):
            return UPRIGHT
        exif = Image.Exif()
        exif.load(known)
        turn = exif.get(TAG)
    except Exception:  # noqa: BLE001 - as above
        return UPRIGHT
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else UPRIGHT


def turned(pixels: Tensor, turn: int) -> Tensor:
    """The pixels [..., H, W] upright, by an orientation from 1 to 8."""
    if turn in _TRANSPOSED:
        pixels = pixels.transpose(-1, -2)
    sides = [-1] * (turn in _MIRRORED) + [-2] * (turn in _UPSIDE_DOWN)
    return pixels.flip(sides).contiguous() if sides else pixels.contiguous()


def turned_with_mask(image: Tensor, mask: Tensor, turn: int) -> tuple[Tensor, Tensor]:
    """Image [3, H, W] and mask [H, W], both upright. A mask has no EXIF: one of the stored pixels' size was
    drawn on them, and one of the upright picture's size on that. Raises SampleError where it fits neither, or
    both, as of a square picture."""
    stored, upright = tuple(image.shape[-2:]), tuple(turned(image, turn).shape[-2:])
    if turn == UPRIGHT and tuple(mask.shape) == stored:
        return image, mask
    if tuple(mask.shape) not in (stored, upright):
        raise SampleError(size_mismatch(stored, tuple(mask.shape)))
    if stored == upright:
        raise SampleError(
            f"its EXIF turns the image (orientation {turn}), and its mask could be drawn on either; write "
            "the image upright and without EXIF, or give data.exif_rotation=False"
        )
    return turned(image, turn), mask if tuple(mask.shape) == upright else turned(mask, turn)
