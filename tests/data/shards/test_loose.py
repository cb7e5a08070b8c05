"""Sets in files of their own: they are the shards that the makers would write of them, to the last bit."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from maskkit import TREES
from shardkit import config, dtem, image
from torchvision.datasets import ImageFolder

from pipeline.data import layouts
from pipeline.data.shards.find import load_manifest, split_named
from pipeline.data.shards.loose import is_held_out, loose_of
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import CheckpointError, ConfigError, SampleError, StorageError
from pipeline.interfaces import Batch

EACH = 5
"""Samples of a shard here."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    for kind in layouts.LAYOUTS:
        monkeypatch.setitem(layouts.SHARD_SIZES, kind, EACH)


def tree(root: Path, counts: dict[str, int], *, ending: str = "png") -> Path:
    """Pictures in the folders, so many in each."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            form = {"png": "PNG", "bmp": "BMP"}[ending]
            data = image(sum(folder.encode()) + number, (14, 12), form)
            (root / folder / f"{number:02d}.{ending}").write_bytes(data)
    return root


SPLITS = {"train/b": 9, "train/a": 8, "train/c c": 6, "valid/b": 3, "valid/a": 4, "valid/c c": 5}


@pytest.fixture
def photos(tmp_path) -> Path:
    return tree(tmp_path / "photos", SPLITS)


def take(
    folder: Path | str, count: int, *, done: int = 0, rank: int = 0, ranks: int = 1, **options
) -> list[Batch]:
    own = config(folder, **options)
    made = build_stream("t", own, seed=5, rank=rank, world_size=ranks, batch_size=12 // ranks)
    made.load_state_dict(made.state_dict() | {"samples": 12 * done})
    return list(islice(iter(made), count))


def equal(ours: list[Batch], others: list[Batch]) -> bool:
    assert len(ours) == len(others) > 0
    return all(
        one.keys == other.keys
        and torch.equal(one.images, other.images)
        and torch.equal(one.targets.labels, other.targets.labels)
        for one, other in zip(ours, others, strict=True)
    )


@pytest.mark.parametrize("options", [{}, {"lanes": 3}, {"workers": 2}], ids=str)
def test_training_on_a_folder_is_training_on_its_shards(photos, tmp_path, options):
    dtem("make", "imagefolder", photos, tmp_path / "made", "--shard-size", EACH, "--workers", 1)
    for location in (photos, f"imagefolder:{photos}"):
        assert equal(take(location, 5, **options), take(tmp_path / "made", 5, **options))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_goes_on_anywhere_in_the_order_of_one(photos, ranks):
    whole = take(photos, 5, lanes=2)
    parts = [take(photos, 3, done=2, rank=rank, ranks=ranks, lanes=2) for rank in range(ranks)]
    for step in range(3):
        assert sum((part[step].keys for part in parts), ()) == whole[2 + step].keys
        assert torch.equal(torch.cat([part[step].images for part in parts]), whole[2 + step].images)


def test_a_position_in_a_folder_that_has_changed_is_refused(photos):
    state = build_stream("t", config(photos), seed=5, rank=0, world_size=1).state_dict()
    (photos / "train" / "a" / "new.png").write_bytes(image(99))
    later = build_stream("t", config(photos), seed=5, rank=0, world_size=1)
    with pytest.raises(CheckpointError, match="other shards"):
        later.load_state_dict(state)


def evaluated(folder: Path | str, split: str = "val") -> Iterator[Batch]:
    return iter(build_eval_loader("t", config(folder), rank=0, world_size=1, split=split))


def test_every_picture_to_evaluate_comes_once_with_the_label_of_torchvision(photos):
    found = [pair for b in evaluated(photos) for pair in zip(b.keys, b.targets.labels.tolist(), strict=True)]
    theirs = ImageFolder(str(photos / "valid"))
    keys = [str(Path(path).relative_to(photos / "valid").with_suffix("")) for path, _ in theirs.samples]
    assert sorted(found) == sorted(zip(keys, theirs.targets, strict=True))
    assert load_manifest(str(photos)).classes == tuple(theirs.classes)


NAMES = ("b", "B", "a b", "10", "9", "_", "\u00e9", "Z", "a")


def test_classes_and_samples_are_those_of_torchvision(tmp_path):
    """Class folders in the order of their names, pictures in their folders too, endings of both cases."""
    root = tree(tmp_path / "set", {**dict.fromkeys(NAMES, 2), "a/deep": 1, "a/deep/er": 2, "a/x": 1})
    (root / "a" / "UP.PNG").write_bytes(image(3))
    (root / "b" / "photo.pgm").write_bytes(b"P5 2 2 255\n" + bytes(4))
    (root / "b" / "notes.txt").write_text("no picture")
    theirs, ours = ImageFolder(str(root)), layouts_of(root)
    assert ours.classes == tuple(theirs.classes)
    assert {(path, item.label) for item in ours.splits[""] for path in item.files} == set(theirs.samples)


def layouts_of(root: Path):
    from pipeline.data.layouts.tree import read_tree

    return read_tree("imagefolder", root)


def test_a_link_back_is_left_out_and_the_rest_is_there(tmp_path, caplog):
    root = tree(tmp_path / "set", {"a": 2, "a/inner": 1, "b": 1})
    (root / "a" / "inner" / "back").symlink_to(root / "a", target_is_directory=True)
    assert load_manifest(str(root)).num_samples == 4 and "1 folders" in caplog.text


def test_pictures_of_other_formats_are_read_as_the_makers_store_them(tmp_path):
    one, other = (tree(tmp_path / ending, {"a": 3, "b": 3}, ending=ending) for ending in ("png", "bmp"))
    assert all(torch.equal(a.images, b.images) for a, b in zip(evaluated(one), evaluated(other), strict=True))


@pytest.mark.parametrize("kind", sorted(TREES))
def test_masks_are_those_of_the_makers(kind, tmp_path):
    root = TREES[kind](tmp_path / "tree")
    dtem("make", kind, root, tmp_path / "made", "--workers", 1)
    made, loose = load_manifest(str(tmp_path / "made")), load_manifest(f"{kind}:{root}")
    assert (loose.classes, loose.schema, loose.num_samples) == (made.classes, made.schema, made.num_samples)
    for split in ("train", "val"):
        assert members(f"{kind}:{root}", split) == members(str(tmp_path / "made"), split)


def members(source: str, split: str) -> dict[str, dict[str, bytes]]:
    from pipeline.data.shards.cache import default_cache
    from pipeline.data.shards.reader import SampleReader

    manifest = split_named(source, split)
    reader = SampleReader(manifest, 2, default_cache(), 1.0)
    at = [(shard, sample) for shard, one in enumerate(manifest.shards) for sample in range(one.num_samples)]
    return {reader.key(*place): dict(reader.read(*place)) for place in at}


def test_captions_of_a_table_are_those_of_the_maker(tmp_path):
    tree(tmp_path / "set", {"images": 3})
    rows = "".join(f"images/{n:02d}.png,picture {n},{'val' if n == 2 else 'train'}\n" for n in range(3))
    (tmp_path / "set" / "table.csv").write_text("image,caption,split\n" + rows)
    source = f"captions:{tmp_path / 'set' / 'table.csv'}"
    dtem("make", "captions", tmp_path / "set" / "table.csv", tmp_path / "made", "--workers", 1)
    assert members(source, "train") == members(str(tmp_path / "made"), "train")
    assert list(members(source, "val")) == ["images/02"]


def test_a_share_is_held_out_by_the_name_alone(tmp_path):
    flat = tree(tmp_path / "flat", {"a": 40, "b": 40})
    source = f"imagefolder:{flat}?held_out=0.25"
    train, val = (members(source, split) for split in ("train", "val"))
    assert not train.keys() & val.keys() and len(train) + len(val) == 80 and 8 <= len(val) <= 32
    assert val.keys() == {key for key in train | val if is_held_out(key, 0.25)}
    for path in list((flat / "a").iterdir())[:20]:
        path.unlink()
    assert members(source, "val").keys() <= val.keys(), "what is held out stays so, whatever else goes"
    only = config(source, val=None)
    loader = build_eval_loader("t", only, rank=0, world_size=1)
    assert {key for batch in loader for key in batch.keys} == members(source, "val").keys()


def test_a_flat_folder_is_one_set_and_is_not_trained_and_evaluated_on(tmp_path):
    flat = tree(tmp_path / "flat", {"a": 4, "b": 4})
    assert load_manifest(str(flat), "train").num_samples == load_manifest(str(flat), "val").num_samples == 8
    with pytest.raises(ConfigError, match="trained on"):
        build_eval_loader("t", config(flat, allow_overlap=False), rank=0, world_size=1)
    with pytest.raises(SampleError, match=r"has no shard of split 'val'.*held_out"):
        build_eval_loader("t", config(flat, val=None), rank=0, world_size=1)


def test_a_bad_picture_is_counted_and_a_missing_one_is_not_taken_for_a_bad_one(photos):
    (photos / "valid" / "a" / "01.png").write_bytes(b"")
    loader = build_eval_loader("t", config(photos), rank=0, world_size=1)
    assert sum(len(batch.keys) for batch in loader) == 11 and loader.bad_samples == 1
    (photos / "valid" / "a" / "02.png").unlink()
    with pytest.raises(StorageError, match="02.png is missing; restore it"):
        list(loader)


REFUSED = {
    "imagefolder:https://host/set": "on a disk of here",
    "imagefolder:{root}?held_out=2": "share F in",
    "imagefolder:{root}?held_out=x": "share F in",
    "imagefolder:{root}?val=0.1": "share F in",
    "imagefolder:{root}?held_out=0.1": "has the splits train, val already",
    "imagefolder:{root}/nowhere": "nowhere is not a folder",
    "imagefolder:": "empty",
    "ade20k:{root}": "does not hold the folders images and annotations",
    "nothing:{root}": "not an allowed scheme",
}


@pytest.mark.parametrize("location", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_way_out(photos, location):
    with pytest.raises((ConfigError, SampleError), match=REFUSED[location]):
        load_manifest(location.format(root=photos))


def test_the_tree_of_another_layout_is_named_not_guessed(tmp_path):
    root = TREES["ade20k"](tmp_path / "ade")
    with pytest.raises(ConfigError, match=f"name its layout: ade20k:{root}"):
        load_manifest(str(root))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.png").write_bytes(image())
    with pytest.raises(SampleError, match="no manifest and no .tar in it"):
        load_manifest(str(tmp_path / "plain"))


def test_files_are_listed_once_until_something_changes(photos, monkeypatch):
    first = load_manifest(str(photos))
    assert load_manifest(str(photos), "val").shards.places == first.shards.places
    os.utime(photos / "train" / "a", ns=(1, 1))
    assert load_manifest(str(photos)).digest == first.digest, "times do not count"
    assert loose_of(str(photos)) is None and loose_of(None) is None


def test_folders_that_are_numbers_are_these_labels(tmp_path):
    """As those of ImageNet-V2; by name, `10` would be label 2."""
    numbers = [str(number) for number in range(12)]
    read = [load_manifest(f"imagefolder:{tree(tmp_path / 'numbers', dict.fromkeys(numbers, 1))}").classes]
    read.append(load_manifest(f"imagefolder:{tree(tmp_path / 'gap', dict.fromkeys(numbers[1:], 1))}").classes)
    assert [list(classes) for classes in read] == [numbers, sorted(numbers[1:])]
