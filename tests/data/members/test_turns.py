"""Pictures that their EXIF turns are read upright, as Pillow turns them, and their masks stay on them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from shardkit import config, dtem, encoded, write_tar
from torchvision.transforms.v2.functional import resize

from pipeline.config.schema import AugmentConfig
from pipeline.data.layouts.picture_files import read_picture
from pipeline.data.make.existing import index_shards
from pipeline.data.members.decode import decode_image
from pipeline.data.members.turns import TAG, turn_of, turned, turned_with_mask
from pipeline.data.stream import build_eval_loader
from pipeline.errors import SampleError

TURNS = range(1, 9)


def with_tag(picture: Image.Image, turn: object, form: str = "PNG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[TAG] = turn
    return encoded(picture, form, exif=exif, **options)


def picture(height: int = 10, width: int = 14) -> Image.Image:
    return Image.fromarray(np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8))


def upright(data: bytes) -> torch.Tensor:
    """As Pillow has it."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turn", TURNS)
def test_all_turns_are_those_of_pillow(turn, form):
    data = with_tag(picture(), turn, form, **({} if form == "PNG" else {"quality": 100}))
    found, wanted = decode_image(data), upright(data)
    assert found.shape == wanted.shape and (found.int() - wanted.int()).abs().float().mean() < 3
    if form == "PNG":
        assert torch.equal(found, wanted)
    assert torch.equal(turned(decode_image(data, upright=False), turn), found)


@pytest.mark.parametrize("turn", [0, 9, 300])
def test_a_tag_that_means_nothing_turns_nothing(turn):
    data = with_tag(picture(), turn)
    assert turn_of(data) == 1 and decode_image(data).shape == (3, 10, 14)


def test_exif_that_is_noise_turns_nothing():
    good = with_tag(picture(), 6, "JPEG")
    start = good.index(b"Exif\0\0") + 6
    rng = np.random.default_rng(0)
    for _ in range(50):
        broken = good[:start] + rng.bytes(20) + good[start + 20 :]
        assert turn_of(broken) in TURNS
        decode_image(broken)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P"])
def test_other_colours_turn_too(mode):
    data = with_tag(picture().convert(mode), 6)
    assert torch.equal(decode_image(data), upright(data))


def test_transparency_is_left_out():
    """The colours behind it stay, as `convert("RGB")` of Pillow has them: nothing is drawn on a ground."""
    clear = Image.new("RGBA", (5, 4), (200, 100, 50, 0))
    assert torch.equal(decode_image(encoded(clear, "PNG"))[:, 0, 0], torch.tensor([200, 100, 50]))
    palette = picture().convert("P")
    data = encoded(palette, "PNG", transparency=0)
    wanted = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(decode_image(data), wanted)


@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF"])
def test_other_formats_are_refused_by_name(form):
    with pytest.raises(SampleError, match="are not a JPEG, PNG or WebP image"):
        decode_image(encoded(picture(), form))


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
@pytest.mark.parametrize("drawn_on", ["stored", "upright"])
def test_a_mask_stays_on_its_image(turn, drawn_on):
    """The mask is the image's first channel."""
    stored = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(3, 4, 6)
    mask = stored[0] if drawn_on == "stored" else turned(stored[0], turn)
    image, found = turned_with_mask(stored, mask, turn)
    assert torch.equal(image, turned(stored, turn)) and torch.equal(found, image[0])


def test_a_mask_that_fits_both_or_neither_is_refused():
    square = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(SampleError, match="could be drawn on either"):
        turned_with_mask(square, square[0], 6)
    with pytest.raises(SampleError, match="could be drawn on either"):
        turned_with_mask(square[:, :2], square[0, :2], 3)
    with pytest.raises(SampleError, match="mask has 3x4"):
        turned_with_mask(square, square[0, :3], 6)
    image, mask = turned_with_mask(square, square[0], 1)
    assert image is square and mask.shape == (4, 4)


def test_streams_turn_where_the_setting_says_so_and_verify_agrees(tmp_path):
    image, mask = picture(), Image.fromarray(np.zeros((14, 10), dtype=np.uint8))
    members = [("a.png", with_tag(image, 6)), ("a.cls", b"0"), ("a.seg.png", encoded(mask, "PNG"))]
    write_tar(tmp_path / "part-0.tar", members)
    index_shards([str(tmp_path / "part-0.tar")], tmp_path, classes=["x"])
    assert dtem("verify", tmp_path) == 0

    def shape(**options):
        made = config(tmp_path, schema="segmentation", augment=AugmentConfig(), **options)
        (batch,) = build_eval_loader("t", made, rank=0, world_size=1)
        return tuple(batch.images.shape[-2:])

    assert shape() == (14, 10)
    with pytest.raises(SampleError, match="mask has 14x10"):
        shape(exif_rotation=False, max_bad_samples=0)


def test_a_picture_that_is_made_smaller_keeps_its_turn(tmp_path):
    (tmp_path / "a.jpg").write_bytes(with_tag(picture(40, 60), 6, "JPEG"))
    _, small, _ = read_picture(tmp_path / "a.jpg", 20)
    assert turn_of(small) == 6 and decode_image(small).shape == (3, 30, 20)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_a_picture_of_sixteen_bits_that_is_made_smaller_keeps_its_greys(tmp_path, ending):
    greys = np.linspace(0, 0xFFFF, 40 * 60).astype(np.uint16).reshape(40, 60)
    Image.fromarray(greys).save(tmp_path / f"a{ending}")
    whole, small = (decode_image(read_picture(tmp_path / f"a{ending}", size)[1]) for size in (None, 20))
    wanted = resize(whole, [20, 30], antialias=True)
    assert (small.float() - wanted.float()).abs().max() < 5, "but for JPEG"
