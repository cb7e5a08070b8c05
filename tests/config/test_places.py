"""Relative paths of what a config reads."""

import json
import os
from pathlib import Path

import pytest
from tinyrun import tiny_plain

from pipeline.config.load import digest, from_plain, load_config
from pipeline.config.places import in_their_folder, same_place

TRAIN = "tasks.digits.data.train"


def saved(folder: Path, train: object, weights: str | None = None) -> dict:
    data = {"folder": str(folder), "tasks": {"digits": {"data": {"train": train}}}}
    return data | {"backbone": {"weights": weights}}


def placed(data: dict) -> object:
    return in_their_folder(data)["tasks"]["digits"]["data"]["train"]


@pytest.fixture
def two(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """The folder in which a run was started, and the current one."""
    for name in ("then", "now"):
        (tmp_path / name / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "now")
    return tmp_path / "then", tmp_path / "now"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("data", "{}/data"),
        ("./data/../data", "{}/data"),
        ("data/a-{000..003}.tar", "{}/data/a-{{000..003}}.tar"),
        ("{a,b}/x.tar", "{}/{{a,b}}/x.tar"),
        ("imagefolder:data?held_out=0.1", "imagefolder:{}/data?held_out=0.1"),
        ("data::/abs", "{}/data::/abs"),
        (["data", "hf://datasets/u/n"], ["{}/data", "hf://datasets/u/n"]),
        ("file:///abs", "file:///abs"),
        ("s3://bucket/{0..3}.tar", "s3://bucket/{{0..3}}.tar"),
    ],
)
def test_what_is_there_is_taken_from_the_folder_of_the_start(two, written, read):
    then, _ = two
    wanted = [part.format(then) for part in read] if isinstance(read, list) else read.format(then)
    assert placed(saved(then, written)) == wanted


def test_what_only_the_current_folder_has_is_taken_there(two):
    then, now = two
    (now / "other").mkdir()
    assert placed(saved(then, "other/{0..1}.tar")) == "other/{0..1}.tar"
    assert placed(saved(then, "nowhere")) == f"{then}/nowhere", "where it would be looked for"
    assert placed(saved(then.with_name("moved"), "data")) == "data"
    assert placed(saved(then.with_name("moved"), "nowhere")) == "nowhere", "no folder of then is left"


def test_weights_by_a_name_stay(two):
    then, _ = two
    (then / "w.pth").touch()
    found = [
        in_their_folder(saved(then, None, text))["backbone"]["weights"] for text in ("w.pth", "open_clip:A@t")
    ]
    assert found == [f"{then}/w.pth", "open_clip:A@t"]


def test_a_value_that_is_no_place_is_left_to_the_schema(two):
    then, _ = two
    for value in (7, {"a": "data"}, None, [3, "data"]):
        changed = placed(saved(then, value))
        assert changed == ([3, f"{then}/data"] if isinstance(value, list) else value)
    assert in_their_folder({"folder": 3, "tasks": "x"}) == {"folder": 3, "tasks": "x"}
    assert in_their_folder({"folder": "x", "tasks": "y", "backbone": None})["tasks"] == "y"


def test_two_ways_of_writing_one_place(two):
    then, now = two
    assert same_place(TRAIN, "data", str(then), f"{then}/data/", None)
    assert same_place(TRAIN, ["../now/data"], None, ["data"], str(now))
    assert not same_place(TRAIN, "data", str(then), "data", str(now))
    assert not same_place("output", "data", None, "data", None), "no setting of what is read"


def test_an_override_is_of_the_current_folder_and_the_digest_of_none(two, digits):
    then, _ = two
    plain = tiny_plain(digits, then / "run", data=dict(train="data")) | {"folder": str(then)}
    (then / "config.json").write_text(json.dumps(plain))
    assert load_config(then / "config.json").tasks["digits"].data.train == f"{then}/data"
    given = load_config(then / "config.json", [f"{TRAIN}=data"])
    assert given.tasks["digits"].data.train == "data"
    assert given.folder is None
    assert digest(from_plain(plain)) == digest(from_plain(plain | {"folder": os.getcwd()}))
