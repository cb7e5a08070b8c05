"""`dtem shards`: what is written can be read, by us and by WebDataset; what is wrong is listed."""

import os
import tarfile
from pathlib import Path

import pytest
from shardkit import dtem, image, samples, write_tar

from pipeline.data.shards.find import load_manifest
from pipeline.errors import ConfigError, SampleError


@pytest.fixture
def tree(tmp_path) -> Path:
    """ImageNet's layout with two synsets: 5 + 4 training pictures, 2 + 1 to validate."""
    root = tmp_path / "imagenet"
    for split, counts in (("train", (5, 4)), ("val", (2, 1))):
        for synset, count in zip(("n02000001", "n01000002"), counts, strict=True):
            folder = root / split / synset
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{synset}_{split}{number}.JPEG").write_bytes(
                    image(number, (30 + number, 40), "JPEG")
                )
    (root / "train" / "n02000001" / "notes.txt").write_text("not a picture")
    (root / "LOC_synset_mapping.txt").write_text("n01000002 tench, Tinca tinca\nn02000001 goldfish\n")
    return root


def labels(folder: Path, split: str) -> dict[str, int]:
    found = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name[:-4]: int(tar.extractfile(m).read()) for m in tar if m.name.endswith(".cls")}  # pyright: ignore
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_an_imagenet_tree_becomes_shards_with_synset_names(tree, tmp_path, workers, capsys):
    out = tmp_path / "out"
    assert dtem("make", "imagefolder", tree, out, "--shard-size", 4, "--workers", workers) == 0
    assert "12 samples, 4 shards" in capsys.readouterr().out
    manifest = load_manifest(str(out))
    assert manifest.classes == ("n01000002 tench, Tinca tinca", "n02000001 goldfish") and manifest.schema == (
        "cls",
        "jpg",
    )
    assert [(shard.name, shard.num_samples) for shard in manifest.shards] == [
        ("train-00000.tar", 4),
        ("train-00001.tar", 4),
        ("train-00002.tar", 1),
        ("val-00000.tar", 3),
    ]
    train = labels(out, "train")
    assert len(train) == 9 and all(label == int(key.startswith("n02000001/")) for key, label in train.items())
    assert list(train) != sorted(train), "classes are mixed"
    assert dtem("verify", out) == 0
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_pictures_keep_their_bytes_or_get_the_asked_shorter_side(tree, tmp_path):
    from pipeline.data.members.decode import decode_image

    dtem("make", "imagefolder", tree, tmp_path / "same")
    dtem("make", "imagefolder", tree, tmp_path / "small", "--size", 16)
    originals = {path.read_bytes() for path in tree.rglob("*.JPEG")}
    for folder, check in (
        ("same", lambda data: data in originals),
        ("small", lambda data: min(decode_image(data).shape[1:]) == 16),
    ):
        with tarfile.open(tmp_path / folder / "val-00000.tar") as tar:
            pictures = [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]  # pyright: ignore
        assert len(pictures) == 3 and all(check(data) for data in pictures)


def test_a_tree_without_splits_is_a_training_set(tree, tmp_path):
    assert dtem("make", "imagefolder", tree / "val", tmp_path / "out") == 0
    assert load_manifest(str(tmp_path / "out"), "train").num_samples == 3


def test_a_broken_picture_or_an_empty_tree_is_named_and_leaves_no_manifest(tree, tmp_path):
    (tree / "train" / "n01000002" / "n01000002_train1.JPEG").write_bytes(b"oops")
    with pytest.raises(SampleError, match="n01000002_train1.JPEG"):
        dtem("make", "imagefolder", tree, tmp_path / "out", "--workers", 1)
    assert not list((tmp_path / "out").glob("*.json")) and not list((tmp_path / "out").glob(".partial*"))
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="class folders|is not a folder"):
            dtem("make", "imagefolder", source, tmp_path / "out2")


def test_shards_are_not_written_over(tmp_path):
    small = ["--train", 4, "--val", 2, "--size", 32, "--workers", 1]
    assert dtem("make", "digit_scenes", tmp_path / "d", *small) == 0
    with pytest.raises(ConfigError, match="holds shards already"):
        dtem("make", "digit_scenes", tmp_path / "d", *small)


def test_digit_scenes_are_read_by_the_webdataset_library(tmp_path):
    wds = pytest.importorskip("webdataset")
    dtem("make", "digit_scenes", tmp_path, "--train", 5, "--val", 2, "--size", 32, "--shard-size", 3)
    urls = sorted(str(path) for path in tmp_path.glob("train-*.tar"))
    read = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in read] == [f"{number:06d}" for number in range(5)]
    for sample in read:
        assert (
            sample["jpg"].shape == (32, 32, 3)
            and 0 <= sample["cls"] < 10
            and len(sample["json"]["captions"]) == 5
        )
        assert sample["seg.png"].shape[:2] == (32, 32)


def test_existing_shards_get_a_manifest_in_place_or_apart(tmp_path, capsys):
    write_tar(tmp_path / "set" / "part-0.tar", samples("a", 3))
    (tmp_path / "set" / "classes.json").write_text('["x", "y", "z"]')
    assert dtem("make", "index", tmp_path / "set", tmp_path / "apart") == 0
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["classes.json", "part-0.tar"]
    assert dtem("make", "index", tmp_path / "set") == 0
    assert load_manifest(str(tmp_path / "set")).digest == load_manifest(str(tmp_path / "apart")).digest
    assert load_manifest(str(tmp_path / "set")).classes == ("x", "y", "z")
    assert dtem("verify", tmp_path / "set") == dtem("verify", tmp_path / "apart") == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_lists_everything_that_is_wrong(tmp_path, capsys, workers):
    (tmp_path / "classes.json").write_text('["x", "y", "z"]')
    bad = [
        ("bad1.png", b""),
        ("bad1.cls", b"0"),
        ("bad2.png", image()),
        ("bad2.cls", b"9"),
        ("bad3.png", image()),
    ]
    write_tar(tmp_path / "part-0.tar", samples("a", 3) + bad)
    write_tar(tmp_path / "part-1.tar", samples("a", 1) + samples("b", 3))
    flipped = write_tar(tmp_path / "part-2.tar", samples("c", 3))
    cut = write_tar(tmp_path / "part-3.tar", samples("d", 3))
    dtem("make", "index", tmp_path, "--workers", 1)
    data = bytearray(flipped.read_bytes())
    data[520] ^= 0xFF
    flipped.write_bytes(data)
    size = cut.stat().st_size
    os.truncate(cut, 2048)
    os.truncate(cut, size)  # as long as before, and zeros
    assert dtem("verify", tmp_path, "--workers", workers) == 1
    out = capsys.readouterr().out
    for line in (
        "part-0.tar, sample 'bad1', png: 0 bytes",
        "part-0.tar, sample 'bad2', cls: class 9 is not below 3",
        "part-0.tar, sample 'bad3': has no cls",
        "part-1.tar, sample 'a_000': the key is also in part-0.tar",
        "part-2.tar: its sha256 is not the manifest's",
        "part-2.tar, sample 'c_000', png:",
        "part-3.tar: its sha256 is not the manifest's",
        "part-3.tar: its samples are not those of its index",
    ):
        assert line in out, out
    assert dtem("verify", tmp_path, "--quick", "--workers", 1) == 1
    assert "bad1" not in capsys.readouterr().out
