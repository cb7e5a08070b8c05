"""A maker of shards takes a file or says that it does not."""

import io
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from captionkit import entries, karpathy, pictures
from maskkit import TREES
from PIL import Image
from shardkit import dtem, image, read, samples, write_tar

from pipeline.data.shards.find import load_manifest
from pipeline.errors import ConfigError, SampleError


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def picture(path: Path, seed: int = 0, form: str = "JPEG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image(seed, form=form))
    return path


def tree(root: Path, counts: dict[str, int]) -> Path:
    """`{"train/cat": 2}` pictures in folders."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(root / folder / f"{folder.replace('/', '_')}{number}.jpg", number)
    return root


def make(root: Path, out: Path, kind: str = "imagefolder") -> dict[str, int]:
    """Samples by split of what the maker writes."""
    dtem("make", kind, root, out, "--workers", 1)
    found: dict[str, int] = {}
    for shard in load_manifest(str(out)).shards:
        found[shard.split] = found.get(shard.split, 0) + shard.num_samples
    return found


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "validation", "Test")]
)
def test_folders_of_splits_are_found_by_each_of_their_names(tmp_path, names, told, capsys):
    counts = {
        f"{name}/{kind}": number
        for number, name in zip((3, 2, 1), names, strict=True)
        for kind in ("cat", "dog")
    }
    assert make(tree(tmp_path / "set", counts), tmp_path / "out") == {"train": 6, "val": 4, "test": 2}
    assert "samples by split: " in capsys.readouterr().out
    assert (
        "train: 6 pictures of 2 classes, 3 to 3 of each" in told.messages
        and "class 1, dog: 3 train, 2 val, 1 test" in told.messages
    )
    assert not [record for record in told.records if record.levelno > logging.INFO]


def test_what_is_left_out_is_told_by_its_ending(tmp_path, told):
    root = tree(
        tmp_path / "set", {"train/cat": 2, "train/cat/deeper": 3, "val/cat": 1, "test": 4, "spare/cat": 1}
    )
    for name in ("train/cat/notes.txt", "train/cat/more.txt", "train/cat/a.psd", "val/list", "readme.md"):
        (root / name).write_text("x")
    assert make(root, tmp_path / "out") == {"train": 5, "val": 1}
    warned = [record.getMessage() for record in told.records if record.levelno == logging.WARNING]
    assert [line for line in warned if "cat: " in line] == [
        f"left out in {root}/train/cat: 2 .txt, 1 .psd, for instance {root}/train/cat/a.psd"
    ]
    assert any(
        line.startswith(f"left out in {root}: ") and "2 folders" in line and "1 .md" in line
        for line in warned
    )
    assert any(line.startswith(f"left out in {root}/val: 1 without an ending") for line in warned)


def test_a_class_of_one_split_is_told_and_an_empty_one_is_refused(tmp_path, told):
    root = tree(tmp_path / "set", {"train/cat": 2, "val/cat": 1, "val/emu": 1})
    make(root, tmp_path / "out")
    assert any("1 classes have no pictures to train on, the first is 'emu'" in line for line in told.messages)
    (root / "train" / "void").mkdir()
    with pytest.raises(ConfigError, match="1 class folders hold no pictures, the first is 'void'"):
        make(root, tmp_path / "out2")


def test_a_class_can_be_called_as_a_split_and_two_folders_of_one_split_are_refused(tmp_path):
    assert make(tree(tmp_path / "traffic", {"bus": 1, "train": 2}), tmp_path / "out") == {"train": 3}
    assert load_manifest(str(tmp_path / "out")).classes == ("bus", "train")
    with pytest.raises(ConfigError, match="are both the split 'val'"):
        make(tree(tmp_path / "set", {"train/a": 1, "val/a": 1, "valid/a": 1}), tmp_path / "out2")


@pytest.mark.parametrize("kind", [*TREES, "coco_captions"])
def test_a_tree_of_another_maker_is_sent_to_it(tmp_path, kind):
    root = (
        TREES[kind](tmp_path / "tree") if kind in TREES else karpathy(pictures(tmp_path / "tree"), entries())
    )
    with pytest.raises(ConfigError, match=f"`dtem shards make {kind}`"):
        make(root, tmp_path / "out")


def test_folders_of_splits_with_a_year_are_no_classes(tmp_path):
    with pytest.raises(ConfigError, match="holds train2017, val2017, which are splits and no classes"):
        make(tree(tmp_path / "coco", {"train2017": 2, "val2017": 1}), tmp_path / "out")


FORMS = {".bmp": "BMP", ".tif": "TIFF", ".TIFF": "TIFF", ".gif": "GIF"}


@pytest.mark.parametrize("ending", FORMS)
def test_formats_that_no_reader_takes_become_pngs_of_the_same_pixels(tmp_path, ending):
    path = picture(tmp_path / "set" / "cat" / f"one{ending}", form=FORMS[ending])
    make(tmp_path / "set", tmp_path / "out")
    (members,) = read(tmp_path / "out").values()
    stored = Image.open(io.BytesIO(members["png"]))
    assert stored.format == "PNG" and np.array_equal(
        np.array(stored.convert("RGB")), np.array(Image.open(path).convert("RGB"))
    )
    assert dtem("verify", tmp_path / "out", "--workers", 1) == 0


def test_a_file_of_several_pictures_is_named(tmp_path):
    frames = [Image.open(io.BytesIO(image(seed))) for seed in range(3)]
    (tmp_path / "set" / "cat").mkdir(parents=True)
    frames[0].save(tmp_path / "set" / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(SampleError, match="moving.gif: a GIF of 3 pictures"):
        make(tmp_path / "set", tmp_path / "out")


SPARE = {
    "ade20k": ("images/training/note.txt", "images/extra/x.jpg"),
    "cityscapes": ("leftImg8bit/train/aachen/note.txt", "leftImg8bit/test/berlin/x.png"),
    "pascal": ("JPEGImages/note.txt", "SegmentationClass/note.md"),
    "camvid": ("train/note.txt", "others/x.png"),
}


@pytest.mark.parametrize("kind", SPARE)
def test_layouts_tell_what_they_leave_out(tmp_path, kind, told):
    root = TREES[kind](tmp_path / "tree")
    make(root, tmp_path / "out", kind)
    assert not [line for line in told.messages if "left out in" in line], (
        "what belongs to the layout is not told"
    )
    for name in SPARE[kind]:
        picture(root / name)
    make(root, tmp_path / "out2", kind)
    lines = [line for line in told.messages if "left out in" in line]
    assert len(lines) == 2 and lines[0].endswith(f"1 .txt, for instance {root / SPARE[kind][0]}")


def test_pascals_lists_may_name_a_split_to_test_on(tmp_path, told):
    root = TREES["pascal"](tmp_path / "tree")
    lists = root / "ImageSets" / "Segmentation"
    names = (lists / "val.txt").read_text().split()
    (lists / "val.txt").write_text(names[0])
    assert make(root, tmp_path / "none", "pascal") == {"train": 3, "val": 1}
    assert any("with a mask, which no list names" in line for line in told.messages)
    (lists / "test.txt").write_text(names[1])
    assert make(root, tmp_path / "some", "pascal") == {"train": 3, "val": 1, "test": 1}
    (root / "SegmentationClass" / f"{names[1]}.png").unlink()
    assert make(root, tmp_path / "unlabelled", "pascal") == {"train": 3, "val": 1}
    assert any(
        f"left out: the 1 pictures of {lists / 'test.txt'}, which have no masks" in line
        for line in told.messages
    )


def test_captions_are_counted_and_pictures_without_are_told(tmp_path, told):
    root = karpathy(pictures(tmp_path / "tree"), entries()[:-1])
    assert make(root, tmp_path / "out", "coco_captions") == {"train": 3, "val": 1}
    assert (
        "captions, all of which are kept: 2 images have 1, 1 images have 2, 1 images have 3" in told.messages
    )
    assert f"left out in {root}/val2014: 1 .jpg, for instance {root}/val2014/COCO_val_5.jpg" in told.messages
    (root / "a.csv").write_text("image,caption\nval2014/COCO_val_4.jpg,one\nval2014/COCO_val_4.jpg, \n")
    make(root / "a.csv", tmp_path / "out2", "captions")
    assert "1 captions are blank, and left out" in told.messages


def test_an_index_says_what_it_has_no_shards_of(tmp_path, told, capsys):
    write_tar(tmp_path / "set" / "00000.tar", samples("a", 3))
    shutil.copy(tmp_path / "set" / "00000.tar", tmp_path / "set" / "00001.zip")
    assert dtem("make", "index", tmp_path / "set", "--workers", 1) == 0
    assert f"left out in {tmp_path}/set: 1 .zip, for instance {tmp_path}/set/00001.zip" in told.messages
    assert "no shard names a split" in capsys.readouterr().out
