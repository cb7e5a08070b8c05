"""Large JPEGs that become small images are decoded to a part of their size: by the same draws, to nearly the
same pixels, and the others to the same."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shardkit import config, dtem, encoded, write_tar

from pipeline.config.schema import AugmentConfig
from pipeline.data.members.decode import decode_image
from pipeline.data.members.jpeg import image_reader
from pipeline.data.members.scaled import Scalable, scale_for
from pipeline.data.stream import TrainStream, build_eval_loader, build_stream
from pipeline.errors import ConfigError
from pipeline.framing import Window
from pipeline.interfaces import Batch

LARGE, SMALL = (250, 333), (30, 41)
"""(height, width) of pictures that crops of 16 pixels are at least twice as small as, and less."""
NEAR = 6.0
"""Levels of a pixel, in the mean: what a picture that is smooth over its blocks loses."""


def jpeg(number: int, size: tuple[int, int]) -> bytes:
    """A coarse picture, so that what a scale leaves out is little."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    return encoded(picture, "JPEG", quality=95)


def set_of(folder: Path, files: dict[str, bytes]) -> Path:
    members = [
        member
        for number, (key, data) in enumerate(files.items())
        for member in ((f"{key}.jpg", data), (f"{key}.cls", str(number % 3).encode()))
    ]
    write_tar(folder / "part-000000.tar", members)
    assert dtem("make", "index", folder) == 0
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    sizes = {f"large_{n}": LARGE for n in range(4)} | {f"small_{n}": SMALL for n in range(4)}
    files = {key: jpeg(number, size) for number, (key, size) in enumerate(sizes.items())}
    return set_of(tmp_path_factory.mktemp("mixed"), files)


def stream_of(folder: Path, decode: str, *, rank: int = 0, world_size: int = 1, **options) -> TrainStream:
    given = config(folder, decode=decode, img_size=16, **options)
    return build_stream("t", given, seed=3, rank=rank, world_size=world_size, batch_size=4 // world_size)


def taken(stream: TrainStream, batches: int = 6) -> list[Batch]:
    return list(islice(stream, batches))


def window(height: int, width: int, size: tuple[int, int] = (16, 16)) -> Window:
    return Window(3, 5, height, width, size, "bilinear")


def test_the_smallest_scale_that_leaves_a_pixel_for_each_of_the_image():
    for height, width in ((15, 200), (31, 200), (32, 32), (63, 64), (64, 64), (127, 500), (128, 128)):
        scale = scale_for(window(height, width))
        assert scale == 1 or min(height, width) >= 16 * scale
        assert scale == 8 or min(height, width) < 2 * 16 * scale
    assert scale_for(window(64, 32, (32, 16))) == 2, "each direction by itself"


@pytest.mark.parametrize("size", [(250, 333), (255, 257), (129, 1000)])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_window_is_nearly_that_of_the_whole_picture(size, scale):
    data = jpeg(1, size)
    made = Scalable(image_reader("cuda", upright=True)(data))
    wanted = Window(0, 1, 16 * scale, 16 * scale + 1, (16, 16), "bicubic")
    if 16 * scale > size[0]:
        return
    assert made.shape == decode_image(data).shape and scale_for(wanted) == scale
    differs = made.cut(wanted).float() - wanted(decode_image(data)).float()
    assert made.cut(wanted).shape == (3, 16, 16) and differs.abs().mean() < NEAR
    edge = replace(wanted, top=size[0] - wanted.height, left=size[1] - wanted.width)
    assert (made.cut(edge).float() - edge(decode_image(data)).float()).abs().mean() < NEAR


@pytest.mark.parametrize("options", [{}, {"views": 2}, {"augment": AugmentConfig(crop_scale=(0.08, 1.0))}])
def test_draws_are_the_same_and_only_large_pictures_differ(mixed, options):
    changed = 0
    found, expected = (taken(stream_of(mixed, way, **options)) for way in ("scaled", "worker"))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys == theirs.keys and torch.equal(ours.targets.labels, theirs.targets.labels)
        views = len(ours.images) // len(ours.keys)
        for key, one, other in zip(
            ours.keys, ours.images.split(views), theirs.images.split(views), strict=True
        ):
            if key.startswith("small"):
                assert torch.equal(one, other)
            else:
                changed += not torch.equal(one, other)
    assert changed > 0


def test_pixels_are_a_function_of_the_sample_and_its_draws_alone(mixed):
    """So ranks, workers and a run that goes on make the same ones."""
    alone = taken(stream_of(mixed, "scaled"))
    ranks = [taken(stream_of(mixed, "scaled", rank=rank, world_size=2, workers=rank)) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sum((part.keys for part in parts), ()) == whole.keys
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    first, second = stream_of(mixed, "scaled"), stream_of(mixed, "scaled")
    taken(first, 2)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a.images, b.images) for a, b in zip(taken(second, 4), alone[2:], strict=True))


def test_a_body_that_is_damaged_is_replaced_and_counted(tmp_path):
    whole = jpeg(1, LARGE)
    body = whole[: whole.index(b"\xff\xdb")] + whole[whole.index(b"\xff\xc0") :]  # without its tables
    assert isinstance(image_reader("scaled", upright=True)(body), Scalable)
    folder = set_of(tmp_path, {"body": body} | {f"good_{n}": jpeg(n, LARGE) for n in range(5)})
    stream = stream_of(folder, "scaled", augment=AugmentConfig(crop_scale=(0.9, 1.0)))
    assert not any("body" in batch.keys for batch in taken(stream)) and stream.bad_samples > 0


def test_evaluation_decodes_whole_pictures(mixed):
    found = [
        list(build_eval_loader("t", config(mixed, decode=way, img_size=16), rank=0, world_size=1))
        for way in ("scaled", "worker")
    ]
    assert all(torch.equal(one.images, other.images) for one, other in zip(*found, strict=True))


def test_what_needs_whole_pictures_is_refused(mixed):
    with pytest.raises(ConfigError, match=r"data.decode is 'scaled'.*data.augment.pad"):
        config(mixed, decode="scaled", augment=AugmentConfig(pad=2))
    masks = config(mixed, schema="segmentation", decode="scaled", augment=AugmentConfig())
    with pytest.raises(ConfigError, match="'segmentation' does not use data.decode='scaled'"):
        build_stream("t", masks, seed=0, rank=0, world_size=1)
