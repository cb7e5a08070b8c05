"""`dtem shards info, cat, repair, split, merge` and `verify` of sets that are elsewhere: what they write is
checked by reading it again."""

import http.server
import json
import os
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest
from shardkit import dtem, image, read, samples, write_tar

from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.loose import is_held_out
from pipeline.errors import ConfigError, SampleError

ONE = "--workers", 1


def made(folder: Path, parts: dict[str, list[tuple[str, bytes]]], names: object = None) -> Path:
    """Shards of these members, with a manifest. names: of the classes."""
    for name, members in parts.items():
        write_tar(folder / name, members)
    if names is not None:
        (folder / "classes.json").write_text(json.dumps(names))
    dtem("make", "index", folder, *ONE)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    parts = {"train-0.tar": samples("a", 9), "train-1.tar": samples("b", 8), "val-0.tar": samples("c", 4)}
    return made(tmp_path / "photos", parts, ["cat", "dog", "emu"])


def test_info_says_what_is_there_and_counts_classes_by_split(photos, capsys):
    assert dtem("info", photos) == 0
    said = capsys.readouterr().out
    for line in (
        f"{photos}: 21 samples in 3 shards",
        "members: cls, png",
        "splits: train 17, val 4",
        f"digest: {load_manifest(str(photos)).digest}",
        "  0 cat: 6 train, 2 val",
        "  2 emu: 5 train, 1 val",
    ):
        assert line in said, said
    dtem("info", photos, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"]["train"] == {"0": 6, "1": 6, "2": 5} and facts["samples"] == 21


def test_info_of_a_folder_of_pictures_needs_no_shards(tmp_path, capsys):
    for name in ("cat/1", "cat/2", "dog/1"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / f"{name}.png").write_bytes(image(len(name)))
    assert dtem("info", tmp_path / "tree") == 0
    assert "  0 cat: 2\n  1 dog: 1" in capsys.readouterr().out
    assert dtem("verify", f"imagefolder:{tmp_path / 'tree'}", *ONE) == 0
    (tmp_path / "tree" / "cat" / "2.png").write_bytes(image(5)[:-30])
    assert dtem("verify", tmp_path / "tree", "--workers", 2) == 1
    assert "sample 'cat/2', png: image does not decode" in capsys.readouterr().out


def test_cat_shows_one_sample_and_writes_its_files(photos, tmp_path, capsys):
    assert dtem("cat", photos, "b_003", "--out", tmp_path / "one") == 0
    said = capsys.readouterr().out
    assert (
        "train-1.tar, sample 3, split train" in said and "12x12 pixels" in said and "cls: 1 bytes: 0" in said
    )
    found = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert found == {f"b_003.{suffix}": data for suffix, data in read(photos)["train:b_003"].items()}
    assert dtem("cat", photos, "nothing") == 1 and "has no sample 'nothing'" in capsys.readouterr().out


def test_a_cut_tar_is_repaired_where_no_manifest_was_made(tmp_path, capsys):
    folder = tmp_path / "bare"
    for name, members in {"0.tar": samples("a", 6), "1.tar": samples("b", 5)}.items():
        write_tar(folder / name, members)
    with tarfile.open(folder / "1.tar") as tar:
        place = tar.getmember("b_003.cls").offset_data
    os.truncate(folder / "1.tar", place)
    (folder / "2.tar").write_bytes(b"")
    assert dtem("repair", folder, tmp_path / "out", *ONE) == 0
    said = capsys.readouterr().out
    assert "1.tar: not a readable plain tar after byte" in said, said
    assert f"left out: {folder}/2.tar: holds no sample" in said, said
    kept = {f"0.tar:a_{number:03d}" for number in range(6)} | {f"1.tar:b_{number:03d}" for number in range(3)}
    assert read(tmp_path / "out").keys() == kept


def test_tars_of_one_name_in_two_folders_are_both_repaired(tmp_path):
    for split, count in (("train", 4), ("validation", 3)):
        write_tar(tmp_path / "set" / split / "00000.tar", samples(split, count))
    assert dtem("repair", tmp_path / "set", tmp_path / "out", *ONE) == 0
    made = load_manifest(str(tmp_path / "out"))
    assert {shard.split: shard.num_samples for shard in made.shards} == {"train": 4, "val": 3}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_repaired_has_no_problem_and_every_good_sample(tmp_path, capsys, workers):
    bad = [
        ("bad1.png", b""),
        ("bad1.cls", b"0"),
        ("bad2.png", image()),
        ("bad2.cls", b"9"),
        ("bad3.png", image()),
    ]
    folder = made(
        tmp_path / "set",
        {
            "train-0.tar": samples("a", 3) + bad,
            "train-1.tar": samples("a", 1) + samples("b", 3),
            "train-2.tar": samples("c", 5),
            "val-0.tar": samples("a", 2),
        },
        ["x", "y", "z"],
    )
    cut, whole = folder / "train-2.tar", read(folder)
    with tarfile.open(cut) as tar:
        place = tar.getmember("c_002.cls").offset_data
    os.truncate(cut, place)  # two whole samples, and a picture without its class
    assert dtem("repair", folder, tmp_path / "out", "--workers", workers) == 0
    said = capsys.readouterr().out
    for line in (
        "left out: train-0.tar, sample 'bad1', png: 0 bytes",
        "left out: train-0.tar, sample 'bad2', cls: class 9 is not below 3",
        "left out: train-0.tar, sample 'bad3': has no cls",
        "left out: train-1.tar, sample 'a_000': its key came before",
        "train-2.tar: its sha256 is not the manifest's",
    ):
        assert line in said, said
    found = read(tmp_path / "out")
    counts = {"train:a": 3, "train:b": 3, "train:c": 2, "val:a": 2}
    assert found.keys() == {f"{name}_00{at}" for name, count in counts.items() for at in range(count)}
    assert all(found[key] == whole[key] for key in found)
    assert load_manifest(str(tmp_path / "out")).classes == ("x", "y", "z")
    assert dtem("verify", tmp_path / "out", *ONE) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_split_holds_out_the_same_samples_whatever_else_there_is(photos, tmp_path, workers):
    dtem(
        "split",
        photos,
        tmp_path / "out",
        "--held-out",
        0.3,
        "--name",
        "test",
        "--shard-size",
        4,
        "--workers",
        workers,
    )
    found, given = read(tmp_path / "out"), read(photos)
    for key, members in given.items():
        split, _, name = key.partition(":")
        own = split if split == "val" else "test" if is_held_out(name, 0.3) else "train"
        assert found[f"{own}:{name}"] == members
    manifest = load_manifest(str(tmp_path / "out"))
    assert len(found) == 21 and manifest.classes == ("cat", "dog", "emu")
    assert set(manifest.shards.splits.tolist()) == {"train", "test", "val"}
    assert dtem("verify", tmp_path / "out", *ONE) == 0
    with pytest.raises(ConfigError, match="has a split 'val' already"):
        dtem("split", photos, tmp_path / "other", *ONE)


def test_merged_sets_have_the_samples_of_all_with_labels_by_name(photos, tmp_path, capsys):
    other = made(tmp_path / "other", {"train-0.tar": samples("d", 7)}, ["emu", "yak", "cat"])
    assert dtem("merge", photos, other, tmp_path / "out", "--workers", 2) == 0
    assert f"{other}: its labels have other numbers now" in capsys.readouterr().out
    names = load_manifest(str(tmp_path / "out")).classes
    assert names == ("cat", "dog", "emu", "yak")
    old = {"photos": ("cat", "dog", "emu"), "other": ("emu", "yak", "cat")}
    found = read(tmp_path / "out")
    for source in old:
        for key, members in read(tmp_path / source).items():
            name = old[source][int(members["cls"])]
            assert found[key] == members | {"cls": str(names.index(name)).encode()}
    assert len(found) == 28 and dtem("verify", tmp_path / "out", *ONE) == 0


REFUSED = {
    "keys": ({"train-0.tar": samples("a", 2)}, ["cat", "dog", "emu"], "give --prefix"),
    "names": ({"train-0.tar": samples("d", 3)}, None, "have no names and others have"),
    "members": ({"train-0.tar": [("d.png", image())]}, None, "merge sets of one kind"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_sets_that_do_not_go_together_are_refused(photos, tmp_path, why):
    parts, names, message = REFUSED[why]
    other = made(tmp_path / "other", parts, names)
    with pytest.raises(ConfigError, match=message):
        dtem("merge", photos, other, tmp_path / "out", *ONE)
    assert not (tmp_path / "out").exists()


def test_keys_with_a_prefix_may_be_in_both(photos, tmp_path):
    dtem("merge", photos, photos, tmp_path / "out", "--prefix", *ONE)
    assert load_manifest(str(tmp_path / "out")).num_samples == 42
    assert dtem("cat", tmp_path / "out", "1/a_000") == 0


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_set_elsewhere_is_verified_and_its_damage_is_found(photos, capsys):
    handler = partial(Quiet, directory=str(photos))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert dtem("verify", url, *ONE) == 0
        with open(photos / "train-1.tar", "r+b") as file:
            file.seek(530)
            file.write(b"oops")
        assert dtem("verify", url, *ONE) == 1
        said = capsys.readouterr().out
        assert "train-1.tar: its sha256 is not the manifest's" in said and "sample 'b_000', png" in said
    finally:
        server.shutdown()
        server.server_close()


def test_files_that_are_no_pictures_are_left_out_by_name_where_that_is_asked(tmp_path, caplog):
    tree = tmp_path / "tree"
    for name in ("cat/1", "cat/2", "dog/1", "dog/2"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / f"{name}.png").write_bytes(b"" if name == "dog/1" else image(len(name)))
    dtem("make", "imagefolder", tree, tmp_path / "out", "--skip-bad", *ONE)
    assert load_manifest(str(tmp_path / "out")).num_samples == 3
    assert f"left out: {tree}/dog/1.png: 0 bytes are not" in caplog.text


@pytest.mark.parametrize("good", [("cat/1", "cat/2"), ()], ids=["some", "none"])
def test_a_shard_of_files_that_are_no_pictures_is_left_out(tmp_path, caplog, good):
    tree, out = tmp_path / "tree", tmp_path / "out"
    for name in ("cat/1", "cat/2", "dog/1", "dog/2"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / f"{name}.png").write_bytes(image(len(name)) if name in good else b"")
    command = ("make", "imagefolder", tree, out, "--skip-bad", "--shard-size", 1, *ONE)
    if not good:
        with pytest.raises(SampleError, match="none of its samples can be made, so there is nothing to"):
            dtem(*command)
        assert not list(out.glob("*.tar"))
        return
    dtem(*command)
    manifest = load_manifest(str(out))
    assert manifest.num_samples == len(manifest.shards) == 2 and manifest.classes == ("cat", "dog")
    assert caplog.text.count("as none of its samples can be made") == 2


def test_bench_measures_each_stage_and_a_loader_and_changes_nothing(photos, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    options = ("--img-size", 16, "--samples", 10, "--batch-size", 4, "--workers", "0,1")
    more = ("--rand-augment", "rand-m9", "--on-device", "--rate", 10**6, "--out", tmp_path / "rates.json")
    assert dtem("bench", photos, *options, *more) == 0
    rates = (found := json.loads((tmp_path / "rates.json").read_text()))["rates"]
    assert [(own["stage"], own["workers"]) for own in rates] == [
        *((stage, 0) for stage in ("read", "decode", "augment", "collate", "one core", "device", "batches")),
        ("batches", 1),
    ]
    by_stage = {own["stage"]: own["samples_per_s"] for own in rates}
    assert by_stage["one core"] <= min(by_stage[stage] for stage in ("read", "decode", "augment", "collate"))
    cores = found["cores"]["cores"]
    assert cores - 1 < 10**6 / by_stage["one core"] <= cores
    said = capsys.readouterr().out
    assert all(f"{own['samples_per_s']:.1f}" in said for own in rates) and f"{cores} core" in said
    assert all(own["samples_per_s"] > 0 and own["megabytes_per_s"] > 0 for own in rates)
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
    with pytest.raises(ConfigError, match="needs .*give --schema"):
        dtem("bench", photos, "--schema", "segmentation", *options)
