"""A split is its own shards: found by their names, kept by the manifest, and never those that are trained
on."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from derived import as_before
from shardkit import config, image, samples, write_tar

from pipeline.data.layouts.splits import split_of
from pipeline.data.make.existing import index_shards
from pipeline.data.shards import find as manifest_module
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.table import Shard, ShardTable
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError, SampleError

NAMES = {
    "timm's sets on Hugging Face": (
        "imagenet1k-train-{:04d}.tar",
        "imagenet1k-validation-{:02d}.tar",
        "imagenet1k-test-{:02d}.tar",
    ),
    "pixparse": ("cc3m-train-{:04d}.tar", "cc3m-validation-{:04d}.tar", "cc3m-test-{:04d}.tar"),
    "ours": ("train-{:05d}.tar", "val-{:05d}.tar", "test-{:05d}.tar"),
    "words": ("My_Training_{}.tar", "My_Valid_{}.tar", "My_Testing_{}.tar"),
    "years": ("coco-train2017-{}.tar", "coco-val2017.{}.tar", "test{}.tar"),
}


@pytest.mark.parametrize("style", NAMES)
def test_each_style_of_names_gives_each_split_its_own(tmp_path, style):
    for number, pattern in enumerate(NAMES[style]):
        write_tar(tmp_path / pattern.format(0), samples(f"a{number}", 3 - number))
    for _ in range(2):  # first without, then with a manifest
        assert [load_manifest(str(tmp_path), split).num_samples for split in ("train", "val", "test")] == [
            3,
            2,
            1,
        ]
        assert load_manifest(str(tmp_path)).num_samples == 6
        path = index_shards(sorted(str(tar) for tar in tmp_path.glob("*.tar")), tmp_path)
    assert set(json.loads(path.read_text())["shards"]["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize(
    "name",
    ["00000.tar", "part-0.tar", "pretrained-0.tar", "trainval-0.tar", "train-val-0.tar", "latest-3.tar"],
)
def test_a_name_without_a_split_or_with_two_says_none(name):
    assert split_of(name) == ""


def test_a_manifest_says_the_split_where_names_do_not(uneven, tmp_path):
    folder = Path(shutil.copytree(uneven, tmp_path / "set"))
    manifest = load_manifest(str(folder))
    named = ShardTable.of(
        replace(shard, split="val" if number < 2 else "train") for number, shard in enumerate(manifest.shards)
    )
    (folder / "manifest.json").write_bytes(replace(manifest, shards=named).to_json(None))
    assert (
        load_manifest(str(folder), "val").num_samples,
        load_manifest(str(folder), "train").num_samples,
    ) == (8, 20)
    folder = Path(shutil.copytree(uneven, tmp_path / "before"))
    digest = as_before(folder).digest
    plain = json.loads((folder / "manifest.json").read_text())
    for entry in plain["shards"]:
        del entry["split"]
    (folder / "manifest.json").write_text(json.dumps(plain))
    assert load_manifest(str(folder)).digest == digest, "a manifest of before is still the same set"
    plain["shards"][0]["split"] = "../x"
    (folder / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(SampleError, match="is not a plain word"):
        load_manifest(str(folder))


def test_a_split_that_is_not_there_is_refused_with_the_setting_and_what_there_is(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples("a", 2))
    with pytest.raises(
        SampleError,
        match=rf"tasks.t.data.val: {tmp_path} has no shard of split 'val': 1 shard names train. Give .*part-",
    ):
        build_eval_loader("t", config(tmp_path), rank=0, world_size=1)
    write_tar(tmp_path / "extra-0.tar", samples("b", 2))
    with pytest.raises(
        SampleError, match="cannot be divided into splits: 1 shard names no split, 1 shard names train"
    ):
        load_manifest(str(tmp_path), "train")


WAYS = {
    "one folder without splits": lambda folder, other: (folder, folder),
    "patterns that overlap": lambda folder, other: (
        f"{folder}/part-{{00000..00002}}.tar",
        f"{folder}/part-{{00002..00004}}.tar",
    ),
    "a copy by another name, without a manifest": lambda folder, other: (folder, other),
    "another way to the folder": lambda folder, other: (folder, other / ".." / folder.name),
}


@pytest.mark.parametrize("way", WAYS)
def test_shards_that_are_trained_on_are_not_evaluated(uneven, tmp_path, way):
    folder = Path(shutil.copytree(uneven, tmp_path / "set"))
    write_tar(tmp_path / "other" / "a-1.tar", samples("z", 3))
    shutil.copy(folder / "part-00002.tar", tmp_path / "other" / "a-0.tar")
    train, val = (str(source) for source in WAYS[way](folder, tmp_path / "other"))
    made = config(folder, train=train, val=val, allow_overlap=False)
    with pytest.raises(
        ConfigError,
        match=r"tasks.t.data.val holds shards that are trained on: .*\.tar.*data.allow_overlap=True",
    ):
        build_eval_loader("t", made, rank=0, world_size=1)
    assert build_eval_loader("t", replace(made, allow_overlap=True), rank=0, world_size=1).num_samples
    assert build_eval_loader("t", made, rank=0, world_size=1, split="train").num_samples


def test_sets_whose_keys_and_sizes_are_alike_are_not_the_same(tmp_path):
    for name, fill in (("a", b"x"), ("b", b"y")):
        write_tar(tmp_path / name / "0.tar", [("0.png", image(1)), ("0.cls", b"0"), ("0.txt", fill)])
    made = config(tmp_path, train=str(tmp_path / "a"), val=str(tmp_path / "b"), allow_overlap=False)
    assert build_eval_loader("t", made, rank=0, world_size=1).num_samples == 1


def test_a_folder_that_is_not_there_is_named_with_its_setting_and_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SampleError,
        match=rf"tasks.t.data.val: .*cannot list data/x, which is {tmp_path}/data/x here: No such file",
    ):
        build_eval_loader("t", config("data/x"), rank=0, world_size=1)


def test_what_cannot_be_compared_is_said(uneven, tmp_path, caplog):
    made = config(uneven, train=str(tmp_path / "elsewhere"), allow_overlap=False)
    assert build_eval_loader("t", made, rank=0, world_size=1).num_samples == 28
    assert (
        "tasks.t.data.val holds shards that were trained on is not known" in caplog.text
        and "elsewhere" in caplog.text
    )


def test_a_split_without_a_setting_is_found_by_name(tmp_path):
    folder, apart = tmp_path / "set", tmp_path / "apart"
    for name, count in (("train", 4), ("val", 3), ("test", 2)):
        write_tar(folder / f"x-{name}-0.tar", samples(name, count))
    write_tar(apart / "0.tar", samples("y", 1))

    def size(split: str, **sources: str | None) -> int:
        return build_eval_loader(
            "t", config(folder, **sources), rank=0, world_size=1, split=split
        ).num_samples

    assert [size(split) for split in ("train", "val", "test")] == [4, 3, 2]
    assert size("test", test=str(apart)) == 1 and size("val", val=None) == 3
    with pytest.raises(
        SampleError,
        match="has no shard of split 'tset'; 1 shard names test, 1 shard names train, 1 shard names val",
    ):
        size("tset")
    with pytest.raises(
        SampleError, match="tasks.t.data.val: .*has no shard of split 'test'; 1 shard names no split"
    ):
        size("test", val=str(apart))
    with pytest.raises(ConfigError, match="has no data.test"):
        size("test", val=None, train=None)


def test_many_shards_are_compared_in_no_time(tmp_path):
    tars = [f"{tmp_path}/{number}.tar" for number in range(30_000)]
    twice = [Shard(Path(tar).name, 1, 1, "", "", tar) for tar in [*tars, tars[-1]]]
    start = time.process_time()
    with pytest.raises(SampleError, match="given twice"):
        manifest_module._joined([Manifest(ShardTable.of(twice), (), ())])
    assert time.process_time() - start < 5, "by counting each in turn it takes minutes"
