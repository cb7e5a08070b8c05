"""Data sets of Hugging Face's `datasets` on the disk, as folders and as shards made of them."""

import io
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shardkit import config, dtem, image, read

from pipeline.data.layouts import SHARD_SIZES
from pipeline.data.shards.find import load_manifest
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import ConfigError

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


def test_what_has_no_images_is_refused_with_the_columns_it_has(tmp_path):
    datasets.Dataset.from_dict({"a": [1], "b": ["x"]}).save_to_disk(tmp_path / "set")
    with pytest.raises(ConfigError, match="has the columns a, b; an image column"):
        load_manifest(str(tmp_path / "set"))
    with pytest.raises(ConfigError, match="nor .parquet files"):
        load_manifest(f"hf_datasets:{tmp_path}")
    (tmp_path / "set" / "state.json").write_text("{")
    with pytest.raises(ConfigError, match="does not read as a data set"):
        load_manifest(f"hf_datasets:{tmp_path / 'set'}/.")
