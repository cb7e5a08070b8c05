"""A manifest fits its shards, or training does not start."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from shardkit import config, samples, write_tar

from pipeline.data.make.existing import index_shards
from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.indexes import load_index
from pipeline.data.stream import build_stream
from pipeline.errors import SampleError, StorageError


@pytest.fixture
def folder(uneven, tmp_path) -> Path:
    return Path(shutil.copytree(uneven, tmp_path / "set"))


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


def test_counts_bytes_and_names_are_those_of_the_shards(uneven):
    manifest = load_manifest(str(uneven))
    assert [shard.num_samples for shard in manifest.shards] == [7, 1, 12, 5, 3] and manifest.num_samples == 28
    assert [shard.num_bytes for shard in manifest.shards] == [
        (uneven / shard.name).stat().st_size for shard in manifest.shards
    ]
    assert manifest.schema == ("cls", "png") and manifest.classes == ("a", "b", "c")
    members = load_index(manifest.shards[2], default_cache()).members(1)
    data = (uneven / "part-00002.tar").read_bytes()
    assert {suffix: data[offset : offset + size] for suffix, (offset, size) in members.items()} == {
        name.split(".", 1)[1]: data for name, data in samples("s2", 2)[2:]
    }


def test_without_a_manifest_local_shards_are_indexed_in_memory_and_it_is_said_once(folder, caplog):
    digest = load_manifest(str(folder)).digest
    for name in (*folder.glob("*.json"), *folder.glob("*.index")):
        name.unlink()
    (folder / "classes.json").write_text('["a", "b", "c"]')
    with caplog.at_level(logging.WARNING):
        assert load_manifest(str(folder)).digest == load_manifest(str(folder)).digest == digest
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"`dtem shards make index {folder}`" in line


def test_without_names_the_classes_are_the_numbers_up_to_the_highest(folder):
    for name in (*folder.glob("*.json"), *folder.glob("*.index")):
        name.unlink()
    assert load_manifest(str(folder)).classes == ("0", "1", "2")


def test_a_pattern_or_list_takes_a_part(uneven):
    ranged = load_manifest(f"{uneven}/part-{{00001..00003}}.tar")
    listed = load_manifest([f"{uneven}/part-0000{n}.tar" for n in (1, 2, 3)])
    braced = load_manifest(f"{uneven}/part-0000{{1,2,3}}.tar")
    assert (
        ranged.num_samples == 18
        and ranged.digest == listed.digest == braced.digest != load_manifest(str(uneven)).digest
    )


def test_a_folder_with_splits_gives_each_its_own(tmp_path):
    for name, count in (("train-00000", 4), ("train-00001", 3), ("val-00000", 2)):
        write_tar(tmp_path / f"{name}.tar", samples(name, count))
    for _ in range(2):  # first without, then with a manifest
        assert load_manifest(str(tmp_path), "train").num_samples == 7
        assert load_manifest(str(tmp_path), "val").num_samples == 2
        assert load_manifest(str(tmp_path)).num_samples == 9
        index_shards(sorted(str(path) for path in tmp_path.glob("*.tar")), tmp_path)


def test_a_manifest_can_lie_apart_from_its_shards(folder, tmp_path):
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    index_shards(tars, tmp_path / "apart", root=str(folder), classes=["a", "b", "c"])
    assert load_manifest(str(tmp_path / "apart")).digest == load_manifest(str(folder)).digest
    next(iter(build_stream("t", config(tmp_path / "apart"), seed=0, rank=0, world_size=1)))


CHANGES = {
    "missing shard": (lambda folder: (folder / "part-00002.tar").unlink(), "part-00002.tar is missing"),
    "longer shard": (
        lambda folder: (folder / "part-00001.tar").open("ab").write(b"x"),
        r"part-00001.tar has \d+ bytes instead of",
    ),
    "edited counts": (
        lambda folder: edit(folder, lambda plain: plain["shards"]["num_samples"].__setitem__(0, 8)),
        "digest",
    ),
    "index gone": (
        lambda folder: (folder / "part-00000.tar.index").unlink(),
        "part-00000.tar.index is missing",
    ),
    "not json": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
    "deep json": (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "manifest.json"),
    "wrong types": (lambda folder: edit(folder, lambda plain: plain.update(shards=3)), "manifest.json"),
    "a list": (lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest.json"),
    "format": (lambda folder: edit(folder, lambda plain: plain.update(format=9)), "its format is 9"),
    "climbing name": (
        lambda folder: edit(folder, lambda plain: plain["shards"]["name"].__setitem__(0, "../x.tar")),
        "not a plain name",
    ),
    "evil root": (
        lambda folder: edit(folder, lambda plain: plain.update(root="pipe:touch x")),
        "not an allowed scheme",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_does_not_match_is_an_error_before_training(folder, name):
    change, message = CHANGES[name]
    change(folder)
    with pytest.raises(SampleError, match=message):
        build_stream("t", config(folder), seed=0, rank=0, world_size=1)


def test_a_shard_that_the_manifest_does_not_list_is_named(folder):
    write_tar(folder / "part-00009.tar", samples("x", 1))
    with pytest.raises(SampleError, match="does not list .*part-00009.tar"):
        load_manifest([str(folder / "part-00000.tar"), str(folder / "part-00009.tar")])


def test_shards_that_were_added_to_a_folder_are_not_passed_over(folder):
    write_tar(folder / "part-00009.tar", samples("x", 1))
    write_tar(folder / "._part-00001.tar", samples("macos", 1))
    with pytest.raises(
        SampleError,
        match=rf"does not list {folder}/part-00009.tar \(1 of the shards there\); make it anew: `dtem shards",
    ):
        load_manifest(str(folder))
    assert load_manifest(f"{folder}/part-{{00000..00004}}.tar").num_samples == 28
    index_shards(sorted(str(path) for path in folder.glob("[!.]*.tar")), folder)
    assert load_manifest(str(folder)).num_samples == 29


@pytest.mark.parametrize("name", ["part-1.tar.gz", "part-1.tgz", "PART-1.TAR"])
def test_tars_that_cannot_be_read_by_place_are_not_passed_over(tmp_path, name):
    for number in (0, 1):
        write_tar(tmp_path / f"part-{number}.tar", samples(f"s{number}", 2))
    (tmp_path / "part-1.tar").rename(tmp_path / name)
    with pytest.raises(
        SampleError, match=rf"holds 1 shards that cannot be read, for instance {name}: decompress them"
    ):
        load_manifest(str(tmp_path))
    assert load_manifest(str(tmp_path / "part-0.tar")).num_samples == 2


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"keys": ["a"], "suffixes": ["cls"], "offsets": [[1e99]], "sizes": [[1]]}']
)
def test_an_index_that_was_changed_is_refused(folder, content):
    (folder / "part-00000.tar.index").write_text(content)
    with pytest.raises(StorageError, match="not the one that the manifest names"):
        load_index(load_manifest(str(folder)).shards[0], default_cache())


def test_nothing_given_nothing_there_and_twice_the_same_are_refused(tmp_path, uneven):
    for source, message in (
        ([], "no shards"),
        (str(tmp_path), "no manifest and no .tar"),
        (str(tmp_path / "x"), "cannot list"),
    ):
        with pytest.raises(SampleError, match=message):
            load_manifest(source)
    with pytest.raises(SampleError, match="given twice"):
        load_manifest([f"{uneven}/part-00000.tar"] * 2)
