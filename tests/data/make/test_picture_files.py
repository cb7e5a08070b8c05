"""Picture files of formats that no reader of shards takes: PNGs of the same pixels, or refused by name."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.layouts.picture_files import INKS, read_picture
from pipeline.errors import SampleError


def stored(path, picture, size=None) -> Image.Image:
    picture.save(path)
    suffix, data, shape = read_picture(path, size)
    assert shape == (9, 12) and suffix == ("png" if size is None else "jpg")
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "1", *INKS])
def test_a_tiff_keeps_its_colours(tmp_path, mode):
    """Those of inks become the RGB that Pillow shows."""
    values = np.arange(9 * 12 * 3, dtype=np.uint8).reshape(9, 12, 3)
    picture = Image.fromarray(values)
    # Pillow converts nothing to LAB
    picture = Image.merge("LAB", picture.split()) if mode == "LAB" else picture.convert(mode)
    found = stored(tmp_path / "one.tif", picture)
    with Image.open(tmp_path / "one.tif") as whole:
        assert np.array_equal(found.convert("RGB"), whole.convert("RGB"))
    assert stored(tmp_path / "one.tif", picture, size=6).mode == "RGB"


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_of_32_bits_are_refused_with_the_way_out(tmp_path, kind):
    Image.fromarray(np.full((9, 12), 7, kind)).save(tmp_path / "deep.tif")
    with pytest.raises(SampleError, match=r"deep\.tif: a TIFF of 32 bits .* store 8 or 16 bits"):
        read_picture(tmp_path / "deep.tif", None)
