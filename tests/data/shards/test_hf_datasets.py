"""Data sets of Hugging Face's `datasets` on the disk, as folders and as shards made of them."""

import io
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shardkit import config, dtem, image, read

from pipeline.config.schema import AugmentConfig
from pipeline.data.layouts import SHARD_SIZES
from pipeline.data.shards.find import load_manifest
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import ConfigError, SampleError

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
NAMES = ["emu", "yak", "ant"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, tmp_path):
    monkeypatch.setitem(SHARD_SIZES, "hf_datasets", 5)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def table(count: int, **more: Any) -> Any:
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    files = [{"bytes": image(number), "path": None} for number in range(count)]
    columns = {"image": files, "label": [number % 3 for number in range(count)]}
    kinds |= {name: datasets.Value("string") for name in more}
    return datasets.Dataset.from_dict(columns | more, features=datasets.Features(kinds))


@pytest.fixture
def saved(tmp_path) -> Path:
    both = datasets.DatasetDict(train=table(17), validation=table(7))
    both.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def batches(source: Path | str, workers: int = 0):
    made = build_stream("t", config(source, workers=workers), seed=5, rank=0, world_size=1, batch_size=6)
    return list(islice(iter(made), 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_saved_data_set_is_trained_on_as_its_shards_are(saved, tmp_path, workers):
    dtem("make", "hf_datasets", saved, tmp_path / "made", "--shard-size", 5, "--workers", 1)
    for ours, theirs in zip(batches(saved, workers), batches(tmp_path / "made"), strict=True):
        assert ours.keys == theirs.keys and torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets.labels, theirs.targets.labels)
    assert load_manifest(f"hf_datasets:{saved}").classes == tuple(NAMES)


def test_rows_keep_their_files_and_labels_and_splits_their_words(saved, tmp_path):
    dtem("make", "hf_datasets", saved, tmp_path / "made", "--workers", 1)
    found = read(tmp_path / "made")
    assert len(found) == 24 and found["val:00000004"] == {"png": image(4), "cls": b"1"}
    loader = build_eval_loader("t", config(saved), rank=0, world_size=1)
    assert sum(len(batch.keys) for batch in loader) == 7


def test_parquet_files_are_read_by_the_splits_of_their_names(saved, tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, count in (("train", 17), ("validation", 7)):
        table(count).to_parquet(str(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"))
    for ours, theirs in zip(batches(f"hf_datasets:{tmp_path / 'hub'}"), batches(saved), strict=True):
        assert ours.keys == theirs.keys and torch.equal(ours.images, theirs.images)


def test_captions_and_pictures_of_other_formats_become_members(tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (9, 7), (3, 200, 40)).save(out, "TIFF")
    made = table(2, caption=["a field", "a tree"]).remove_columns("label").to_list()
    made[1]["image"] = {"bytes": out.getvalue(), "path": None}
    kinds = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    datasets.Dataset.from_list(made, features=kinds).save_to_disk(tmp_path / "set")
    dtem("make", "hf_datasets", tmp_path / "set", tmp_path / "out", "--workers", 1)
    found = read(tmp_path / "out")
    assert [json.loads(found[f"train:0000000{at}"]["json"]) for at in (0, 1)] == [
        {"captions": ["a field"]},
        {"captions": ["a tree"]},
    ]
    assert Image.open(io.BytesIO(found["train:00000001"]["png"])).getpixel((0, 0)) == (3, 200, 40)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [(["yak", "emu"], ("emu", "yak"), [1, 0]), ([2, 0], ("0", "1", "2"), [2, 0])],
    ids=["texts", "numbers"],
)
def test_labels_without_a_list_of_classes_are_texts_or_numbers(tmp_path, labels, classes, numbers):
    """In all splits alike: `yak` is the second class also where it is the only one."""
    kind = datasets.Value("string" if isinstance(labels[0], str) else "int64")
    kinds = datasets.Features(image=datasets.Image(), label=kind)
    parts = {
        split: datasets.Dataset.from_list(
            [{"image": {"bytes": image(at), "path": None}, "label": labels[at]} for at in rows],
            features=kinds,
        )
        for split, rows in {"train": (0, 1), "validation": (0,)}.items()
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    dtem("make", "hf_datasets", tmp_path / "set", tmp_path / "made", "--workers", 1)
    assert load_manifest(str(tmp_path / "set")).classes == classes
    found = read(tmp_path / "made")
    assert [found[f"train:0000000{at}"]["cls"] for at in (0, 1)] == [str(n).encode() for n in numbers]
    (batch,) = build_eval_loader("t", config(tmp_path / "set"), rank=0, world_size=1)
    assert batch.targets.labels.tolist() == numbers[:1]


@pytest.mark.parametrize("label", [[0.5, 1.0], [[0], [1]]], ids=str)
def test_labels_that_are_no_classes_are_none(tmp_path, label):
    made = table(2, caption=["a", "b"]).remove_columns("label").add_column("label", label)
    made.save_to_disk(tmp_path / "captions")
    assert load_manifest(str(tmp_path / "captions")).schema == ("json", "png")
    made.remove_columns("caption").save_to_disk(tmp_path / "set")
    with pytest.raises(ConfigError, match="has the columns image, label; .* one of labels"):
        load_manifest(str(tmp_path / "set"))


def test_splits_whose_labels_mean_something_else_are_refused(tmp_path):
    made = table(2).cast_column("label", datasets.Value("string"))
    datasets.DatasetDict(train=table(2), validation=made).save_to_disk(tmp_path / "set")
    with pytest.raises(ConfigError, match="its splits have different classes"):
        load_manifest(str(tmp_path / "set"))


def test_an_image_that_is_said_to_lie_at_no_file_is_a_bad_sample(tmp_path):
    """A stranger's table could name a device, which never ends."""
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    files = [{"bytes": image(0), "path": None}, {"bytes": None, "path": str(tmp_path)}]
    rows = pyarrow.Table.from_pydict({"image": files, "label": [0, 1]}, schema=kinds.arrow_schema)
    (tmp_path / "set").mkdir()
    parquet.write_table(rows, tmp_path / "set" / "val-0.parquet")
    loader = build_eval_loader("t", config(f"hf_datasets:{tmp_path / 'set'}"), rank=0, world_size=1)
    assert [key for batch in loader for key in batch.keys] == ["00000000"] and loader.bad_samples == 1


def masked(name: str, **more: Any) -> Any:
    files, masks = [], []
    for number in range(6):
        out = io.BytesIO()
        labels = np.random.default_rng(number).choice(np.array([0, 1, 2, 255], np.uint8), (12, 12))
        Image.fromarray(labels).save(out, "PNG")
        files.append({"bytes": image(number), "path": None})
        masks.append({"bytes": out.getvalue(), "path": None})
    kinds = {"image": datasets.Image(), name: datasets.Image()}
    kinds |= {key: datasets.ClassLabel(names=NAMES) for key in more}
    return datasets.Dataset.from_dict({"image": files, name: masks} | more, features=datasets.Features(kinds))


@pytest.mark.parametrize("name", ["mask", "annotation", "label"])
def test_masks_in_a_column_are_a_set_to_segment(tmp_path, name):
    masked(name).save_to_disk(tmp_path / "set")
    with pytest.raises(
        ConfigError, match="the classes of its masks have no names; list them in classes.json"
    ):
        load_manifest(str(tmp_path / "set"))
    (tmp_path / "set" / "classes.json").write_text(json.dumps(["ground", "tree", "sky"]))
    source = f"hf_datasets:{tmp_path / 'set'}"
    own = config(source, schema="segmentation", augment=AugmentConfig())
    keys = {}
    for batch in build_eval_loader("t", own, rank=0, world_size=1, split="train"):
        for key, mask in zip(batch.keys, batch.targets.mask, strict=True):
            keys[key] = np.random.default_rng(int(key)).choice(np.array([0, 1, 2, 255], np.uint8), (12, 12))
            assert np.array_equal(mask.numpy(), keys[key])
    assert len(keys) == 6 and load_manifest(source).mask_names == ("ground", "tree", "sky")
    dtem("make", "hf_datasets", tmp_path / "set", tmp_path / "out", "--workers", 1)
    assert load_manifest(str(tmp_path / "out")).mask_names == ("ground", "tree", "sky")
    assert dtem("verify", tmp_path / "out", "--workers", 1) == 0


def test_a_mask_with_a_class_that_is_not_listed_is_named(tmp_path):
    masked("mask").save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "classes.json").write_text(json.dumps(["ground", "tree"]))
    with pytest.raises(
        SampleError, match=r"row \d: mask has label 2 .*; replace the mask, or correct classes"
    ):
        dtem("make", "hf_datasets", tmp_path / "set", tmp_path / "out", "--workers", 1)


def test_masks_beside_labels_have_names_of_their_own(tmp_path):
    masked("mask", label=[0, 1, 2, 0, 1, 2]).save_to_disk(tmp_path / "set")
    assert load_manifest(str(tmp_path / "set")).schema == ("cls", "png")
    (tmp_path / "set" / "classes.json").write_text(json.dumps({"mask_classes": ["ground", "tree", "sky"]}))
    found = load_manifest(f"hf_datasets:{tmp_path / 'set'}")
    assert found.schema == ("cls", "png", "seg.png")
    assert (found.classes, found.mask_classes) == (tuple(NAMES), ("ground", "tree", "sky"))


def test_what_has_no_images_is_refused_with_the_columns_it_has(tmp_path):
    datasets.Dataset.from_dict({"a": [1], "b": ["x"]}).save_to_disk(tmp_path / "set")
    with pytest.raises(ConfigError, match="has the columns a, b; an image column"):
        load_manifest(str(tmp_path / "set"))
    with pytest.raises(ConfigError, match="nor .parquet files"):
        load_manifest(f"hf_datasets:{tmp_path}")
    (tmp_path / "set" / "state.json").write_text("{")
    with pytest.raises(ConfigError, match="does not read as a data set"):
        load_manifest(f"hf_datasets:{tmp_path / 'set'}/.")
