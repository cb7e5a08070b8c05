"""Images that the device decodes are those that a worker would have decoded, by the same draws. The device is
the CPU here; `pytest -m cuda` asks a GPU."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shardkit import config, dtem, encoded, image, write_tar
from torch import Tensor

from pipeline import coded
from pipeline.config.schema import AugmentConfig
from pipeline.data.members.decode import decode_image
from pipeline.data.members.jpeg import jpeg_in
from pipeline.data.stream import TrainStream, build_eval_loader, build_stream
from pipeline.errors import ConfigError, SampleError
from pipeline.interfaces import Batch

CPU = torch.device("cpu")
CHANGES = AugmentConfig(
    crop_scale=(0.3, 1.0),
    train_interpolation="random",
    vflip=0.3,
    rand_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.5,
    on_device=True,
)
ROUNDING = 2 / 255 / 0.22
"""Two levels of a pixel, normalised."""


def picture(number: int, mode: str = "RGB") -> Image.Image:
    """Of a size of its own, smooth."""
    draws = np.random.default_rng(number)
    size = 40 + number % 7, 50 - number % 5
    coarse = Image.fromarray(draws.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def jpeg(number: int, mode: str = "RGB", **options: Any) -> bytes:
    return encoded(picture(number, mode), "JPEG", **options)


def turned_by_exif(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(number, exif=exif)


WHOLE = {
    "baseline": jpeg(1),
    "progressive": jpeg(2, progressive=True),
    "full_colours": jpeg(3, subsampling=0),
    "half_colours": jpeg(4, subsampling=1),
}
"""What a device decodes."""
OTHERS = {
    "png": image(5, (30, 40)),
    "webp": encoded(picture(6), "WEBP"),
    "grey": jpeg(7, "L"),
    "cmyk": jpeg(8, "CMYK"),
    "turned": turned_by_exif(9),
    "rgb": jpeg(10, keep_rgb=True),
    "long_tail": jpeg(11) + bytes(500),
}
"""What is left to workers."""
SPOILED = {
    "cut_off": jpeg(12)[:-200],
    "no_image": b"\xff\xd8\xff" + bytes(300) + b"\xff\xd9",
}


def no_tables(data: bytes) -> bytes:
    """A JPEG whose header reads, without the tables of quantisation that its body needs."""
    return data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :]


def set_of(folder: Path, files: dict[str, bytes], shards: int = 2) -> str:
    keys = sorted(files)
    for shard in range(shards):
        members = []
        for number, key in enumerate(keys[shard::shards]):
            suffix = key.split("_")[0] if key.startswith(("png", "webp")) else "jpg"
            members += [(f"{key}.{suffix}", files[key]), (f"{key}.cls", str(number % 3).encode())]
        write_tar(folder / f"part-{shard:06d}.tar", members)
    assert dtem("make", "index", folder) == 0
    return f"{folder}/part-{{000000..{shards - 1:06d}}}.tar"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> str:
    return set_of(tmp_path_factory.mktemp("mixed"), WHOLE | OTHERS)


def stream_of(folder: str, decode: str, device: torch.device | None = CPU, **options: Any) -> TrainStream:
    given = {"decode": decode, "img_size": 16, "augment": CHANGES} | options
    stream = build_stream("t", config(folder, **given), seed=3, rank=0, world_size=1, batch_size=4)
    stream.device = device
    return stream


def moved(stream: TrainStream, batches: int) -> list[Batch]:
    return [batch.to(CPU) for batch in islice(stream, batches)]


def same(ours: list[Batch], expected: list[Batch], tolerance: float = 0.0) -> bool:
    return all(
        a.keys == b.keys
        and a.images.shape == b.images.shape
        and torch.equal(a.targets.labels, b.targets.labels)
        and (a.images - b.images).abs().max() <= tolerance
        for a, b in zip(ours, expected, strict=True)
    )


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_what_a_device_decodes_has_the_size_of_its_header(data):
    found = jpeg_in(data, upright=True)
    assert found is not None and (3, found.height, found.width) == tuple(decode_image(data).shape)


@pytest.mark.parametrize("data", [*OTHERS.values(), *SPOILED.values()], ids=[*OTHERS, *SPOILED])
def test_the_rest_is_left_to_workers(data):
    assert jpeg_in(data, upright=True) is None


def test_a_turned_picture_that_stays_as_stored_is_for_the_device():
    assert jpeg_in(turned_by_exif(9), upright=False) is not None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"views": 2},
        {"augment": AugmentConfig(crop_scale=(1, 1), hflip=1.0)},
        {"workers": 2},
    ],
    ids=["changes", "views", "resized", "workers"],
)
def test_the_device_gives_what_workers_give(mixed, options):
    expected = moved(stream_of(mixed, "worker", **(options | {"workers": 0})), 4)
    assert same(moved(stream_of(mixed, "cuda", **options), 4), expected, ROUNDING)


def test_batch_to_decodes_where_the_stream_does_not(mixed):
    batches = list(islice(stream_of(mixed, "cuda", device=None), 3))
    assert any(batch.coded for batch in batches), "files travel"
    assert all(batch.num_images == 4 and len(batch.images) < 4 for batch in batches if batch.coded)
    expected = moved(stream_of(mixed, "worker"), 3)
    assert same([batch.to("cpu") for batch in batches], expected, ROUNDING)


def test_evaluation_decodes_in_workers(mixed):
    found = [
        list(build_eval_loader("t", config(mixed, decode=way, augment=CHANGES), rank=0, world_size=1))
        for way in ("cuda", "worker")
    ]
    assert same(*found) and not any(batch.coded for batch in found[0])


def spoiled_in(folder: Path) -> str:
    return set_of(folder, WHOLE | {"body": no_tables(jpeg(13))} | SPOILED)


def test_a_bad_body_is_replaced_and_counted_as_workers_do(tmp_path, caplog):
    folder = spoiled_in(tmp_path)
    assert jpeg_in(no_tables(jpeg(13)), upright=True) is not None, "its header is good"
    by_worker, by_device = stream_of(folder, "worker"), stream_of(folder, "cuda")
    expected = moved(by_worker, 4)
    assert same(moved(by_device, 4), expected, ROUNDING)
    assert by_device.bad_shards == by_worker.bad_shards and by_worker.bad_samples > 0
    assert "sample 'body'" in caplog.text and "is decoded by the CPU" in caplog.text


GPU = torch.device("meta")
"""Stands for a device whose decoder does not know all that the CPU's does."""


@pytest.fixture
def gpu(monkeypatch):
    """Lets GPU decode, by the CPU, all but the files that `refuses` tells: gpu(refuses)."""
    decode = coded.decode_jpeg
    monkeypatch.setattr(coded, "_decoders", set())

    def set_up(refuses: Callable[[bytes], bool]) -> None:
        def on_gpu(files: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
            if device == GPU and any(refuses(file.numpy().tobytes()) for file in files):
                raise RuntimeError("nvjpegDecode failed: 2")
            return decode(files, mode, CPU)

        monkeypatch.setattr(coded, "decode_jpeg", on_gpu)

    return set_up


def test_a_device_that_refuses_all_files_of_a_batch_leaves_it_to_the_cpu(mixed, gpu, caplog):
    """It may not know their coding: a plain file says whether it decodes any."""
    gpu(lambda data: data in WHOLE.values())
    stream = stream_of(mixed, "cuda", GPU)
    assert same(moved(stream, 3), moved(stream_of(mixed, "worker"), 3))
    assert stream.bad_samples == 0 and "decode on meta failed: nvjpegDecode failed: 2" in caplog.text


def test_a_device_that_never_decoded_ends_the_run_and_one_that_did_does_not(mixed, gpu, monkeypatch):
    gpu(lambda data: True)
    with pytest.raises(ConfigError, match="no JPEG decodes on meta: nvjpegDecode failed: 2; give"):
        moved(stream_of(mixed, "cuda", GPU), 3)
    monkeypatch.setattr(coded, "_decoders", {GPU})
    assert len(moved(stream_of(mixed, "cuda", GPU), 3)) == 3


@pytest.mark.parametrize("sound", [0, 1])
def test_a_lack_of_memory_is_no_bad_file(mixed, gpu, sound):
    """Of a batch, or of one of its files that is tried by itself."""
    tried = []

    def lacks(data: bytes) -> bool:
        if len(tried) == sound:
            raise RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried to allocate")
        tried.append(data)
        return True

    gpu(lacks)
    with pytest.raises(torch.OutOfMemoryError):
        moved(stream_of(mixed, "cuda", GPU), 3)


@pytest.mark.parametrize(("most", "together"), [(1000, 1), (4100, 2)])
def test_pictures_are_decoded_in_parts_and_a_larger_one_alone(mixed, monkeypatch, most, together):
    """They have about 2000 pixels."""
    expected, decode, parts = moved(stream_of(mixed, "cuda", views=2), 4), coded.decode_jpeg, []

    def noted(files: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
        parts.append(len(files))
        return decode(files, mode, device)

    monkeypatch.setattr(coded, "PART", most)
    monkeypatch.setattr(coded, "decode_jpeg", noted)
    assert same(moved(stream_of(mixed, "cuda", views=2), 4), expected)
    assert max(parts) == together


def test_a_bad_body_without_a_stream_names_its_sample(tmp_path):
    for batch in islice(stream_of(spoiled_in(tmp_path), "cuda", device=None), 4):
        if "body" in batch.keys:
            with pytest.raises(SampleError, match="sample 'body': decode on cpu failed: Quant"):
                batch.to("cpu")
            return
    raise AssertionError("an epoch has every sample")


REFUSED = [
    ({"augment": AugmentConfig(rand_augment="rand-m9")}, "on_device=True"),
    ({"augment": AugmentConfig(grayscale=0.1)}, "data.augment.grayscale"),
    ({"augment": AugmentConfig(pad=2)}, "data.augment.pad"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED)
def test_what_needs_pixels_in_workers_is_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        config("nowhere", decode="cuda", **options)


def test_masks_are_refused(mixed):
    with pytest.raises(ConfigError, match="'segmentation' does not use data.decode='cuda'"):
        build_stream(
            "t",
            config(mixed, schema="segmentation", decode="cuda", augment=AugmentConfig()),
            seed=0,
            rank=0,
            world_size=1,
        )


@pytest.mark.cuda
def test_a_gpu_gives_nearly_what_workers_give(mixed):
    """nvJPEG rounds, and enlarges the colours, in its own way: so by the mean."""
    plain = AugmentConfig(crop_scale=(0.5, 1.0))
    expected = moved(stream_of(mixed, "worker", augment=plain), 4)
    found = moved(stream_of(mixed, "cuda", torch.device("cuda"), augment=plain), 4)

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b.to(a.device)).abs().mean())

    for a, b in zip(found, expected, strict=True):
        assert a.keys == b.keys and apart(a.images, b.images) < 4 / 255 / 0.22


@pytest.mark.cuda
def test_a_gpu_gives_the_same_in_parts_while_it_works(mixed, monkeypatch):
    """Memory that a part has freed is that of the next one: nothing may still read it."""
    gpu, plain = torch.device("cuda"), AugmentConfig(crop_scale=(0.5, 1.0))
    expected = moved(stream_of(mixed, "cuda", gpu, augment=plain), 4)
    monkeypatch.setattr(coded, "PART", 1000)
    busy = torch.randn(4096, 4096, device=gpu)
    for _ in range(50):
        busy = busy @ busy / 64
    assert same(moved(stream_of(mixed, "cuda", gpu, augment=plain), 4), expected, ROUNDING)
