"""Tables of images and their classes, one or several of each: read as they lie, made into shards, or given to
shards that have none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shardkit import config, dtem, image, read, write_tar

from pipeline.data.shards.find import load_manifest
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError, PipelineError, SampleError

ONE = "--workers", 1
SEVERAL = {"a/1": ["dog", "cat"], "a/2": ["emu"], "b/3": [], "b/4": ["cat", "emu", "dog"], "v/5": ["cat"]}
NAMES = ("cat", "dog", "emu")


def pictures(root: Path) -> Path:
    for number, key in enumerate(SEVERAL):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{key}.png").write_bytes(image(number))
    return root


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split_of(key: str) -> str:
    return "val" if key.startswith("v") else "train"


def rows(**changes: Any) -> list[dict[str, Any]]:
    own = SEVERAL | changes
    return [{"image": f"{key}.png", "labels": labels, "split": split_of(key)} for key, labels in own.items()]


@pytest.fixture
def photos(tmp_path) -> Path:
    json_lines(pictures(tmp_path / "photos") / "labels.jsonl", rows())
    return tmp_path / "photos"


def several(source: object, **options: Any) -> dict[str, list[str]]:
    """Key -> names of the classes of each sample of both splits, as a stream gives them."""
    found = {}
    own = config(str(source), schema="multi_label", **options)
    for split in ("train", "val"):
        loader = build_eval_loader("t", own, rank=0, world_size=1, split=split)
        for batch in loader:
            for key, row in zip(batch.keys, batch.targets.labels, strict=True):
                assert row.dtype == torch.float32 and set(row.tolist()) <= {0.0, 1.0}
                found[key] = [loader.classes[i] for i in row.nonzero()[:, 0].tolist()]
    return found


def wanted() -> dict[str, list[str]]:
    return {key: sorted(labels) for key, labels in SEVERAL.items()}


def test_a_folder_with_a_table_beside_its_pictures_is_a_set(photos, tmp_path):
    assert several(photos) == several(f"labels:{photos / 'labels.jsonl'}") == wanted()
    dtem("make", "labels", photos, tmp_path / "out", *ONE)
    assert several(tmp_path / "out") == wanted()
    assert load_manifest(str(tmp_path / "out")).classes == NAMES
    assert json.loads(read(tmp_path / "out")["train:1"]["json"]) == {"labels": ["dog", "cat"]}
    assert dtem("verify", tmp_path / "out", *ONE) == 0


def test_a_csv_parts_classes_by_a_bar_or_has_a_json_list(photos):
    (photos / "labels.jsonl").unlink()
    lines = ["image,labels,split", "a/1.png,dog | cat,train", "a/2.png,emu,train", "b/3.png,[],train"]
    lines += ['b/4.png,"[""cat"",""emu"",""dog""]",train', "v/5.png,cat,val"]
    (photos / "labels.csv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    assert several(photos) == wanted()


def test_numbers_are_classes_by_the_list_beside_the_table(photos):
    numbers = {"a/1": [1, 0], "a/2": [2], "b/4": [0, 2, 1], "v/5": [0]}
    json_lines(photos / "labels.jsonl", rows(**numbers))
    own = load_manifest(str(photos))
    assert own.classes == ("0", "1", "2")
    (photos / "classes.json").write_text(json.dumps([*NAMES, "yak"]))
    table = f"labels:{photos}/./labels.jsonl"
    assert several(table) == wanted() and load_manifest(table).classes == (*NAMES, "yak")


def test_one_class_of_each_image_is_a_set_to_classify(tmp_path):
    """And the samples are those of an ImageFolder tree with the same classes."""
    root = pictures(tmp_path / "one")
    lines = [f"{key}.png,{key[0]},{split_of(key)}" for key in SEVERAL]
    (root / "table.csv").write_text("\n".join(["image,label,split", *lines]))
    dtem("make", "labels", root / "table.csv", tmp_path / "out", *ONE)
    found = {key.partition(":")[2]: members["cls"] for key, members in read(tmp_path / "out").items()}
    assert found == {key[2:]: str("abv".index(key[0])).encode() for key in SEVERAL}
    assert load_manifest(str(tmp_path / "out")).classes == ("a", "b", "v")
    loader = build_eval_loader("t", config(f"labels:{root / 'table.csv'}"), rank=0, world_size=1)
    assert [batch.targets.labels.tolist() for batch in loader] == [[2]]


FAULTS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "not in the list": (rows(**{"a/2": ["yeti"]}), r"a/2.png: class 'yeti' is none of the 3 classes"),
    "number too large": (rows(**{"a/2": [3]}), r"class 3 is none of the 3 classes"),
    "twice": (rows(**{"a/2": ["emu", "emu"]}), "has the class 'emu' twice"),
    "twice by name and number": (rows(**{"a/2": ["emu", 2]}), "twice, by name and by number"),
    "blank": (rows(**{"a/2": [" "]}), "holds ' '; give names"),
    "no list": (rows(**{"a/2": {"emu": 1}}), "give a list of classes"),
    "a fraction": (rows(**{"a/2": [0.5]}), "holds 0.5; give names, or numbers"),
    "no labels": ([{"image": "a/1.png"}], "line 1: give 'label', one class, or 'labels', any number"),
    "both": ([{"image": "a/1.png", "label": "emu", "labels": []}], "give 'label', one class, or"),
    "mixed": ([*rows(), {"image": "b/9.png", "label": "emu"}], "this row has 'label', those before"),
    "image twice": ([*rows(), rows()[0]], "has a row already; give each image one row"),
    "image gone": ([*rows(), {"image": "b/9.png", "labels": []}], "image .*b/9.png is missing"),
    "outside": ([{"image": "../a.png", "labels": []}], "is not the path of a picture"),
    "no rows": ([], "has no rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_cannot_be_used_are_named(photos, fault):
    listed, message = FAULTS[fault]
    (photos / "classes.json").write_text(json.dumps(NAMES))
    json_lines(photos / "labels.jsonl", listed)
    with pytest.raises(SampleError, match=message):
        load_manifest(str(photos))


def test_tables_that_are_none_are_refused(photos, tmp_path):
    with pytest.raises(ConfigError, match="not a file that ends in .csv or .jsonl"):
        load_manifest(f"labels:{tmp_path / 'nothing.csv'}")
    json_lines(photos / "labels.jsonl", rows(**{"a/2": [2]}))
    with pytest.raises(SampleError, match="some of its classes are numbers and others are names"):
        load_manifest(str(photos))
    (photos / "labels.csv").write_text("file,labels\n")
    with pytest.raises(ConfigError, match="name one of them"):
        load_manifest(str(photos))
    with pytest.raises(SampleError, match="names file, labels, not the columns image"):
        load_manifest(f"labels:{photos / 'labels.csv'}")


def shards(folder: Path, contents: dict[str, object], names: object = NAMES) -> Path:
    members = [
        member
        for key, data in contents.items()
        for member in ((f"{key}.png", image(len(key))), (f"{key}.json", json.dumps(data).encode()))
    ]
    write_tar(folder / "train-0.tar", members)
    write_tar(folder / "val-0.tar", [("v.png", image(9)), ("v.json", b"[]")])
    if names is not None:
        (folder / "classes.json").write_text(json.dumps(names))
    dtem("make", "index", folder, *ONE)
    return folder


def test_shards_of_others_hold_a_list_or_a_field_of_names_or_numbers(tmp_path):
    listed = shards(tmp_path / "a", {"k1": ["emu", "cat"], "k2": [1], "k3": {"labels": [2]}})
    assert several(listed) == {"k1": ["cat", "emu"], "k2": ["dog"], "k3": ["emu"], "v": []}
    field = shards(tmp_path / "b", {"k1": {"tags": ["dog"], "url": "x"}})
    assert several(field, label_field="tags") == {"k1": ["dog"], "v": []}
    with pytest.raises(PipelineError, match=r"no field 'labels' \(fields: tags, url\); see data.label_field"):
        several(field, max_bad_samples=0)
    with pytest.raises(SampleError, match="needs the names of its classes .classes.json"):
        several(shards(tmp_path / "c", {"k": ["dog"]}, None))


def test_shards_without_classes_get_those_of_a_table(tmp_path, capsys):
    source = shards(tmp_path / "a", {"k1": {"url": "x"}, "k2": {"url": "y"}})
    write_tar(source / "val-0.tar", [("v.png", image(9)), ("v.json", b"{}")])
    dtem("make", "index", source, *ONE)
    table = [{"key": "k1", "labels": ["b"]}, {"key": "k2", "labels": ["c", "a"]}]
    with pytest.raises(ConfigError, match="has no row for v; give each sample one"):
        dtem("label", source, json_lines(tmp_path / "t.jsonl", table), tmp_path / "out", *ONE)
    table += [{"key": "v", "labels": []}, {"key": "gone", "labels": ["a"]}]
    dtem("label", source, json_lines(tmp_path / "t.jsonl", table), tmp_path / "out", *ONE)
    assert "1 rows of" in capsys.readouterr().out
    assert several(tmp_path / "out") == {"k1": ["b"], "k2": ["a", "c"], "v": []}
    assert json.loads(read(tmp_path / "out")["train:k1"]["json"]) == {"url": "x", "labels": ["b"]}
    lines = [f"{row['key']},{len(row['labels'])}" for row in table]
    (tmp_path / "one.csv").write_text("\n".join(["key,label", *lines]))
    dtem("label", source, tmp_path / "one.csv", tmp_path / "classes", *ONE)
    assert {key: own["cls"] for key, own in read(tmp_path / "classes").items()} == {
        "train:k1": b"1",
        "train:k2": b"2",
        "val:v": b"0",
    }


def test_merged_sets_have_the_classes_of_both(tmp_path):
    first = shards(tmp_path / "a", {"k1": ["emu"], "k2": {"labels": [0, 1]}})
    second = shards(tmp_path / "b", {"k3": ["yak"], "k4": [1, 0], "k5": {"url": "x"}}, ["yak", "cat"])
    dtem("merge", first, second, tmp_path / "out", "--prefix", *ONE)
    assert load_manifest(str(tmp_path / "out")).classes == (*NAMES, "yak")
    found = {key: json.loads(own["json"]) for key, own in read(tmp_path / "out").items()}
    assert found["train:k2"] == {"labels": [0, 1]} and found["train:k3"] == ["yak"]
    assert found["train:k4"] == [0, 3] and found["train:k5"] == {"url": "x"}
