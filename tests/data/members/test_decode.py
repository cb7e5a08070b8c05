"""Members decode by suffix from a closed table; whatever they hold, the answer is a value or a
SampleError."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from shardkit import encoded, image

from pipeline.data.members.decode import (
    DECODERS,
    IMAGES,
    MAX_CLASS,
    MAX_PIXELS,
    decode_captions,
    decode_class,
    decode_image,
    decode_mask,
)
from pipeline.errors import SampleError


@pytest.mark.parametrize(
    ("mode", "form"),
    [(m, "PNG") for m in ("RGB", "RGBA", "L", "LA", "P", "1")] + [("L", "JPEG"), ("RGB", "WEBP")],
)
def test_images_of_all_colours_become_rgb(mode, form):
    picture = (
        Image.open(io.BytesIO(image(1, (20, 30)))).resize((60, 40), Image.Resampling.BILINEAR).convert(mode)
    )
    data = encoded(picture, form)
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    found = decode_image(data)
    assert found.dtype == torch.uint8 and found.shape == (3, 40, 60)
    assert (found.int() - expected.int()).abs().max() <= 2


def test_sixteen_bits_are_scaled_to_eight():
    data = encoded(Image.fromarray(np.full((4, 5), 0x8001, dtype=np.uint16)), "PNG")
    assert torch.equal(decode_image(data), torch.full((3, 4, 5), 0x80, dtype=torch.uint8))


def test_cmyk_photographs_decode():
    """In the colours that Pillow finds: cyan without ink of its own is no red."""
    for ink in ((255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 60), (0, 0, 0, 255)):
        data = encoded(Image.new("CMYK", (9, 7), ink), "JPEG")
        wanted = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
        found = decode_image(data)
        assert found.shape == (3, 7, 9) and (found.int() - wanted.int()).abs().max() <= 3


def test_an_image_just_over_the_limit_is_refused_before_it_is_decoded():
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(SampleError, match=f"image bomb: {side}x{side} pixels"):
        decode_image(encoded(Image.new("1", (side, side)), "PNG"))


def test_masks_keep_their_numbers_also_from_a_palette():
    numbers = np.array([[0, 3], [255, 10]], dtype=np.uint8)
    palette = Image.fromarray(numbers, mode="P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    for picture in (Image.fromarray(numbers), palette):
        assert torch.equal(decode_mask(encoded(picture, "PNG")), torch.from_numpy(numbers))
    with pytest.raises(SampleError, match="mode RGB"):
        decode_mask(image())


@pytest.mark.parametrize("data", [b"7", b" 7\n", b"007"])
def test_a_class_is_a_number_in_digits(data):
    assert decode_class(data, 8) == 7


@pytest.mark.parametrize(
    "data", [b"", b"8", b"-1", b"1.0", b"1e1", b"0x1", b"7 7", "٧".encode(), b"9" * 400, b"__import__('os')"]
)
def test_anything_else_is_not_a_class(data):
    with pytest.raises(SampleError):
        decode_class(data, 8)


def test_captions_are_a_list_of_texts():
    assert decode_captions(json.dumps({"captions": ["a", "b"]}).encode()) == ("a", "b")
    for data in (
        b"",
        b"[1]",
        b'{"captions": []}',
        b'{"captions": "a"}',
        b'{"captions": [1]}',
        b"[" * 100_000,
        b'{"captions": ["' + b"a" * (1 << 21),
    ):
        with pytest.raises(SampleError):
            decode_captions(data)


def is_image(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.ndim == 3 and len(value) == 3
    )


PROMISED = dict.fromkeys(IMAGES, is_image) | {
    "cls": lambda value: type(value) is int and 0 <= value < MAX_CLASS,
    "json": lambda value: (
        json.loads(json.dumps(value)) == value
        if not isinstance(value, tuple)
        else all(isinstance(text, str) for text in value) and len(value) > 0
    ),
    "seg.png": lambda value: value.dtype == torch.uint8 and value.ndim == 2,
}
"""What a decoder's value may be, whatever the bytes."""


@pytest.mark.parametrize("suffix", sorted(DECODERS))
def test_noise_is_a_sample_error_for_every_decoder(suffix):
    rng = np.random.default_rng(0)
    whole = {
        "cls": b"3",
        "json": b'{"captions": ["a"]}',
        "seg.png": encoded(Image.new("L", (9, 9)), "PNG"),
    }.get(suffix, image(0, (9, 9), "JPEG"))
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = int(rng.integers(256))
        for broken in (bytes(data), bytes(data[: int(rng.integers(len(data)))]), rng.bytes(40)):
            try:
                value = DECODERS[suffix](broken)
            except SampleError:
                refused += 1
                continue
            assert PROMISED[suffix](value), f"{broken[:20]!r} became {value}"
    assert refused >= 200, "forty bytes of noise are nothing that is known"
