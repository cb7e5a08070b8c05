"""Trees of public sets become shards with canonical masks; what does not fit is named."""

import io
from pathlib import Path

import numpy as np
import pytest
from maskkit import TREES, mask_of, png
from PIL import Image
from shardkit import dtem, image, read

from pipeline.data.layouts import MASKS, read_masks
from pipeline.data.shards.find import load_manifest
from pipeline.errors import ConfigError, SampleError


@pytest.fixture(params=sorted(MASKS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def tree(kind, tmp_path) -> Path:
    return TREES[kind](tmp_path / "tree")


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


EXPECTED = {
    "ade20k": (150, {"train": 3, "val": 2}, {255, 0, 76, 149}),
    "cityscapes": (19, {"train": 4, "val": 2}, {255, 0, 1, 18}),
    "pascal": (21, {"train": 3, "val": 2}, {0, 5, 20, 255}),
    "camvid": (11, {"train": 3, "val": 2, "test": 2}, {0, 5, 10, 255}),
}


def test_every_layout_has_its_expectation():
    assert MASKS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tree_becomes_shards_with_canonical_masks(kind, tree, tmp_path, capsys, workers):
    assert dtem("make", kind, tree, tmp_path / "out", "--shard-size", 2, "--workers", workers) == 0
    num_classes, splits, labels = EXPECTED[kind]
    manifest, samples = load_manifest(str(tmp_path / "out")), read(tmp_path / "out")
    assert len(manifest.classes) == len(set(manifest.classes)) == num_classes and not manifest.mask_classes
    assert {
        split: sum(key.startswith(split) for key in samples) for split in splits
    } == splits and manifest.num_samples == len(samples)
    assert set(np.unique(np.concatenate([pixels(parts["seg.png"]) for parts in samples.values()]))) == labels
    assert dtem("verify", tmp_path / "out", "--workers", 1) == 0
    assert f"{len(samples)} samples, 0 problems" in capsys.readouterr().out


def test_files_that_need_no_change_keep_their_bytes(kind, tree, tmp_path):
    originals = {path.read_bytes() for path in tree.rglob("*.*g")}
    dtem("make", kind, tree, tmp_path / "out", "--workers", 1)
    samples = read(tmp_path / "out")
    assert all(parts.get("jpg", parts.get("png")) in originals for parts in samples.values())
    kept = sum(parts["seg.png"] in originals for parts in samples.values())
    assert kept == {"pascal": 5, "camvid": 3}.get(kind, 0), (
        "camvid: the first mask of each split has no label 11"
    )


def test_larger_pictures_can_be_shrunk_with_their_masks(kind, tree, tmp_path):
    dtem("make", kind, tree, tmp_path / "out", "--size", 12, "--workers", 1)
    for parts in read(tmp_path / "out").values():
        assert pixels(parts["jpg"]).shape == (12, 18, 3) and pixels(parts["seg.png"]).shape == (12, 18)
    assert dtem("verify", tmp_path / "out", "--workers", 1) == 0


def test_names_and_numbers_are_those_of_the_sets(tmp_path):
    ade, city = (read_masks(kind, TREES[kind](tmp_path / kind)) for kind in ("ade20k", "cityscapes"))
    assert ade.classes[0] == "thing 1, sort of 1" and ade.labels[0] == 255 and ade.labels[150] == 149
    assert [city.classes[city.labels[label]] for label in (7, 23, 26, 33)] == [
        "road",
        "sky",
        "car",
        "bicycle",
    ]
    assert sum(number != 255 for number in city.labels.values()) == 19 and set(city.labels) == set(range(34))
    (tmp_path / "ade20k" / "objectInfo150.txt").unlink()
    assert read_masks("ade20k", tmp_path / "ade20k").classes[:2] == ("label 1", "label 2")
    (tmp_path / "ade20k" / "objectInfo150.txt").write_text("Idx\tRatio\n1\t0.1\t2\t3\twall\n")
    with pytest.raises(SampleError, match="objectInfo150.txt does not name the classes 1 to 150"):
        read_masks("ade20k", tmp_path / "ade20k")


def test_a_set_like_pascals_names_its_own_classes(tmp_path):
    root = TREES["pascal"](tmp_path / "tree")
    (root / "classes.json").write_text('["ground", "roof"]')
    with pytest.raises(SampleError, match=r"mask has label 5 \(\d+ pixels\), 20"):
        dtem("make", "pascal", root, tmp_path / "out", "--workers", 1)
    for path in (root / "SegmentationClass").iterdir():
        path.write_bytes(png(mask_of([0, 1, 255], (24, 36))))
    dtem("make", "pascal", root, tmp_path / "out2", "--workers", 1)
    assert load_manifest(str(tmp_path / "out2")).classes == ("ground", "roof")


def first(tree: Path, *, masks: bool) -> Path:
    """Some mask, or picture, of the training split."""
    folders = {"annotations", "gtFine", "SegmentationClass", "trainannot"}
    files = [
        path for path in sorted(tree.rglob("*.*g")) if "color" not in path.name and "2008" not in path.name
    ]
    return next(
        path
        for path in files
        if bool(folders & set(path.parts)) == masks and ("train" in str(path) or "2007_000000" in str(path))
    )


@pytest.mark.parametrize("masks", [True, False])
def test_what_has_no_partner_is_named(kind, tree, tmp_path, masks):
    gone, left = first(tree, masks=masks), first(tree, masks=not masks)
    gone.unlink()
    with pytest.raises(
        SampleError,
        match=f"{'image' if masks else 'mask'} .*{left.name} has no {'mask' if masks else 'image'}",
    ):
        dtem("make", kind, tree, tmp_path / "out", "--workers", 1)


STRANGE = {
    "label": (png(mask_of([0, 200], (24, 36))), r"mask has label 200 \(\d+ pixels\)"),
    "size": (png(mask_of([0], (12, 36))), "mask has 12x36 pixels .* and its image 24x36"),
    "colours": (image(1, (24, 36)), "mode RGB"),
    "noise": (b"oops", "not a JPEG, PNG"),
}


@pytest.mark.parametrize("fault", STRANGE)
def test_a_mask_that_does_not_fit_is_named_and_leaves_no_manifest(kind, tree, tmp_path, fault):
    path = first(tree, masks=True)
    path.write_bytes(STRANGE[fault][0])
    with pytest.raises(SampleError, match=f"{path.name}: .*{STRANGE[fault][1]}.*; replace it"):
        dtem("make", kind, tree, tmp_path / "out", "--workers", 1)
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_picture_that_is_none_is_named(kind, tree, tmp_path):
    path = first(tree, masks=False)
    path.write_bytes(b"oops")
    with pytest.raises(SampleError, match=f"{path.name}: 4 bytes are not"):
        dtem("make", kind, tree, tmp_path / "out", "--workers", 1)


def test_another_tree_is_refused_with_what_was_looked_for(kind, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=rf"{source} .*; give"):
            dtem("make", kind, source, tmp_path / "out")


def test_a_list_that_names_what_is_not_there_is_refused(tmp_path):
    root = TREES["pascal"](tmp_path / "tree")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000003\n../../etc/passwd\n")
    with pytest.raises(SampleError, match=r"val.txt names '__/__/etc/passwd' \(1 such lines\)"):
        dtem("make", "pascal", root, tmp_path / "out")
