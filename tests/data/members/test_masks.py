"""Masks in shards: whose names they have, which are refused, and what `verify` tells of them."""

import json
import logging
import struct
import zlib

import numpy as np
import pytest
from maskkit import dense, mask_of, masked_shards, png
from PIL import Image
from shardkit import config, dtem, encoded, image, samples, write_tar

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.make.existing import index_shards
from pipeline.data.members.decode import decode_mask
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.table import ShardTable
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import ConfigError, SampleError

GOOD = png(mask_of([0, 1]))


def four_bits() -> bytes:
    """A grey PNG of four bits per pixel, in which Pillow reads labels 1 and 2 as 17 and 34."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 12, 12, 4, 0, 0, 0, 0)
    rows = (b"\0" + bytes([0x12] * 6)) * 12
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


BAD = {
    "label": (
        {"png": image(), "seg.png": png(mask_of([0, 4, 254]))},
        r"mask has label 4 \(45 pixels\), 254 \(45 pixels\): not one",
    ),
    "size": ({"png": image(0, (12, 15)), "seg.png": GOOD}, "mask has 12x12 pixels .* and its image 12x15"),
    "rgb": ({"png": image(), "seg.png": image()}, "mode RGB, which holds colours"),
    "rgba": ({"png": image(), "seg.png": encoded(Image.new("RGBA", (12, 12)), "PNG")}, "mode RGBA"),
    "deep": (
        {"png": image(), "seg.png": encoded(Image.fromarray(np.zeros((12, 12), np.uint16)), "PNG")},
        "mode I;16",
    ),
    "shallow": ({"png": image(), "seg.png": four_bits()}, "grey PNG of 4 bits"),
    "jpeg": ({"png": image(), "seg.png": image(0, (12, 12), "JPEG")}, "mask does not decode"),
    "cut": ({"png": image(), "seg.png": GOOD[:60]}, "mask does not decode"),
    "maskless": ({"png": image()}, "segmentation needs seg.png"),
    "imageless": ({"seg.png": GOOD}, "segmentation needs an image"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mask_is_named_with_shard_and_key_and_left_out(tmp_path, name, caplog):
    loader = build_eval_loader(
        "t", dense(masked_shards(tmp_path, {name: BAD[name][0]}), eval_batch_size=4), rank=0, world_size=1
    )
    with caplog.at_level(logging.WARNING):
        assert sum(len(batch.keys) for batch in loader) == 9 and loader.bad_samples == 1
    (line,) = [record.getMessage() for record in caplog.records if "bad sample" in record.getMessage()]
    assert "part-0.tar" in line and f"'{name}'" in line
    with pytest.raises(
        SampleError, match=rf"part-0.tar, sample '{name}': .*{BAD[name][1]}.*dtem shards verify"
    ):
        list(build_eval_loader("t", dense(tmp_path, max_bad_samples=0), rank=0, world_size=1))


def test_small_bit_depths_of_a_palette_are_labels():
    for bits in (1, 2, 4):
        mask = (np.arange(24, dtype=np.uint8) % 2**bits).reshape(4, 6)
        assert np.array_equal(decode_mask(png(mask, palette=True, bits=bits)).numpy(), mask)


def test_the_schema_takes_the_names_of_masks(digits):
    ten = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for schema, names in {"classification": ten, "segmentation": ("ground", *ten)}.items():
        made = DataConfig(schema=schema, train=str(digits), val=str(digits), img_size=32, workers=0)
        assert build_stream("t", made, seed=0, rank=0, world_size=1).classes == names
        assert build_eval_loader("t", made, rank=0, world_size=1).classes == names


def test_where_masks_have_no_names_of_their_own_the_classes_are_theirs(tmp_path):
    assert build_eval_loader("t", dense(masked_shards(tmp_path)), rank=0, world_size=1).classes == (
        "road",
        "sky",
        "car",
        "tree",
    )


def test_a_manifest_without_names_of_masks_is_what_it_was():
    old = Manifest(ShardTable.of([]), ("cls", "png"), ("a", "b"))
    assert old.digest == "d674e804e628ce795a037f7944996e20c1bbc684e3a3a722eed5b255c3e98a8e"
    assert "mask_classes" not in json.loads(old.to_json(None))
    assert old.digest != Manifest(ShardTable.of([]), ("cls", "png"), ("a", "b"), ("ground", "a", "b")).digest


CLASSES = {
    '["a", "b"]': (("a", "b"), ()),
    '{"classes": ["a", "b"], "mask_classes": ["ground", "a"]}': (("a", "b"), ("ground", "a")),
    '{"mask_classes": ["ground", "a"]}': (("0", "1", "2"), ("ground", "a")),
    '{"classes": ["a"]}': (("a",), ()),
}


@pytest.mark.parametrize("content", CLASSES)
def test_index_takes_names_from_a_list_or_from_both(tmp_path, content):
    write_tar(tmp_path / "x.tar", samples("s", 3))
    (tmp_path / "classes.json").write_text(content)
    without = load_manifest(str(tmp_path))
    dtem("make", "index", tmp_path, "--workers", 1)
    manifest = load_manifest(str(tmp_path))
    assert (manifest.classes, manifest.mask_classes) == CLASSES[content] and manifest.digest == without.digest


@pytest.mark.parametrize(
    "content",
    ["{}", '{"names": ["a"]}', '{"classes": ["a"], "x": []}', '{"mask_classes": ["a", "a"]}', "3", '""'],
)
def test_a_list_of_names_that_is_none_is_refused(tmp_path, content):
    write_tar(tmp_path / "x.tar", samples("s", 3))
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(SampleError, match="classes.json: give a JSON list"):
        dtem("make", "index", tmp_path, "--workers", 1)


def test_sets_whose_masks_mean_something_else_do_not_mix(tmp_path):
    for name, masks in (("a", ["x", "y"]), ("b", ["x", "z"])):
        index_shards(
            [str(write_tar(tmp_path / name / "s.tar", samples(name, 2)))],
            tmp_path / name,
            classes=["1"],
            mask_classes=masks,
        )
    with pytest.raises(SampleError, match="different classes"):
        load_manifest([str(tmp_path / "a"), str(tmp_path / "b")])


def test_a_set_whose_masks_have_no_names_is_refused(tmp_path):
    index_shards([str(write_tar(tmp_path / "s.tar", [("a.png", image()), ("a.seg.png", GOOD)]))], tmp_path)
    with pytest.raises(SampleError, match="needs the names of its mask's classes"):
        build_stream("t", dense(tmp_path), seed=0, rank=0, world_size=1)
    assert dtem("verify", tmp_path, "--workers", 1) == 1


UNUSED = {
    "segmentation": {
        "crop_scale": (0.5, 1.0),
        "pad": 2,
        "rand_augment": "rand-m9",
        "color_jitter": 0.1,
        "random_erasing": 0.1,
        "erasing_mode": "rand",
        "erasing_count": 2,
        "mixup": 0.2,
        "cutmix": 1.0,
        "mix_prob": 0.5,
        "mix_switch": 0.2,
        "mix_epochs": 3.0,
    },
    "classification": {
        "short_side": 64,
        "resize_range": (1.0, 2.0),
        "max_class_share": 1.0,
        "photometric": True,
        "antialias": False,
    },
}


@pytest.mark.parametrize(
    ("schema", "option"), [(schema, option) for schema, options in UNUSED.items() for option in options]
)
def test_an_option_that_a_schema_does_not_use_is_refused(uneven, schema, option):
    made = config(uneven, schema=schema, augment=AugmentConfig(**{option: UNUSED[schema][option]}))
    manifest = Manifest(ShardTable.of([]), (), ("a",))
    with pytest.raises(ConfigError, match=rf"schema '{schema}' does not use data.augment.{option}="):
        DATASETS.build(schema, made, manifest)
    other = next(name for name in UNUSED if name != schema)
    DATASETS.build(other, config(uneven, schema=other, augment=made.augment), manifest)


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_draws_the_labels_and_names_what_is_outside(tmp_path, capsys, workers):
    masked_shards(tmp_path, {name: BAD[name][0] for name in ("label", "size", "rgb")})
    assert dtem("verify", tmp_path, "--workers", workers) == 1
    out = capsys.readouterr().out
    for name in ("label", "size", "rgb"):
        (line,) = [line for line in out.splitlines() if f"sample '{name}'" in line]
        assert line.startswith("part-0.tar") and "seg.png: " in line
    masks = [mask_of([0, 1, 2, 3, 255], seed=n) for n in range(9)] + [mask_of([0, 4, 254]), mask_of([0, 1])]
    counts = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256)
    shown = {row[0]: row for row in (line.split() for line in out.splitlines()) if row[0].isdigit()}
    assert set(shown) == {"0", "1", "2", "3", "4", "254", "255"}
    for label, name in {
        0: "road",
        1: "sky",
        2: "car",
        3: "tree",
        4: "class)",
        254: "class)",
        255: "(ignored)",
    }.items():
        assert name in shown[str(label)] and f"{counts[label] / counts.sum():.2%}" in shown[str(label)]
    assert f"{9 / 11:.1%}" in shown["3"], "share of the masks that it is in"
    longest = max(range(256), key=counts.__getitem__)
    assert max(shown.values(), key=lambda row: row[-1].count("#"))[0] == str(longest)


def test_verify_draws_nothing_where_there_are_no_masks_or_nothing_is_decoded(uneven, tmp_path, capsys):
    masked_shards(tmp_path)
    assert dtem("verify", uneven, "--workers", 1) == dtem("verify", tmp_path, "--quick", "--workers", 1) == 0
    assert "label" not in capsys.readouterr().out


def test_the_embedded_set_is_whole(digits, capsys):
    assert dtem("verify", digits, "--workers", 1) == 0
    assert "ground" in capsys.readouterr().out
