"""The lists of a maker lie on the disk: they are those that memory would hold, and memory does not grow with
them."""

import gc
import json
import os
import pickle
import random
import resource
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from pipeline.data.layouts.item_file import ItemFile, numbers_on_disk
from pipeline.data.layouts.tree import read_tree
from pipeline.data.make.write import ShardJob, shuffled_jobs, tree_jobs
from pipeline.errors import ConfigError
from pipeline.rng import seed_of

NAMES = ("plain", "\u00fc \U0001f600", os.fsdecode(b"caf\xe9\xff"), '"\\ \u2028\n', "")
PER_FOLDER = 250
FEW, MANY = 2000, 5000


@dataclass(frozen=True)
class Thing:
    name: str
    path: Path
    number: int
    texts: list[str] = field(default_factory=list)


def things(count: int) -> list[Thing]:
    rng = random.Random(count)
    return [
        Thing(
            f"{rng.choice(NAMES)}{number}",
            Path("some", rng.choice(NAMES), str(number)),
            rng.randrange(2**40),
            rng.choices(NAMES, k=number % 3),
        )
        for number in range(count)
    ]


def stored(items: Sequence[Thing]) -> ItemFile[Thing]:
    return ItemFile(iter(items), lambda name, path, number, texts: Thing(name, Path(path), number, texts))


def nothing(items: Sequence[Thing], size: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    yield from ()


def jobs(items: Sequence[Thing], shard_size: int = 7) -> list[ShardJob]:
    make = partial(nothing, size=3)
    return shuffled_jobs({"val": items}, make, shard_size=shard_size, seed=5, kind="things")


@pytest.mark.parametrize("count", [0, 1, 100])
def test_what_lies_on_the_disk_is_what_was_put_there(count):
    given = things(count)
    found = stored(given)
    assert list(found) == given and len(found) == count and bool(found) == bool(given)
    for part in (slice(None), slice(3, 50), slice(None, None, -7), slice(60, 10_000)):
        assert list(found[part]) == given[part] and list(found[part][1:]) == given[part][1:]
    assert [found[-number] for number in range(1, count + 1)] == given[::-1]
    for outside in (count, -count - 1):
        with pytest.raises(IndexError):
            found[outside]


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_the_order_is_that_of_a_shuffled_list(count):
    """So a set that an older version made, or began, is the same set."""
    order = things(count)
    made = jobs(stored(order))
    random.Random(seed_of(5, "things", "val")).shuffle(order)
    assert [item for job in made for item in job.items] == order
    assert [len(job.items) for job in made] == [len(order[at : at + 7]) for at in range(0, count, 7)]
    assert [job.fingerprint() for job in made] == [
        replace(job, items=order[7 * number : 7 * number + 7]).fingerprint()
        for number, job in enumerate(made)
    ]


def test_a_worker_is_sent_the_items_of_its_shard_and_no_others():
    sizes = []
    for count in (50, 5000):
        job = jobs(stored([Thing("name", Path("path"), 7)] * count), shard_size=50)[0]
        sent = pickle.dumps(job)
        assert pickle.loads(sent).items == [Thing("name", Path("path"), 7)] * 50
        sizes.append(len(sent))
    assert sizes[0] == sizes[1]


def test_files_are_closed_with_their_list():
    gc.collect()
    before = psutil.Process().num_fds()
    made = jobs(stored(things(50)))
    assert psutil.Process().num_fds() > before
    del made
    gc.collect()
    assert psutil.Process().num_fds() == before


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process becomes larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 2000, 100_000])
def test_a_full_disk_is_named_with_the_way_out(room):
    for make in (lambda: stored(things(5000)), lambda: numbers_on_disk(50_000)):
        with full_disk(room), pytest.raises(ConfigError, match=r"cannot be written to /.*; set TMPDIR"):
            make()


def test_a_folder_that_is_not_there_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "typo"))
    for make in (lambda: stored(things(5)), lambda: numbers_on_disk(5)):
        with pytest.raises(ConfigError, match="cannot be written to .*typo: No such file"):
            make()


def test_an_error_of_the_items_is_not_taken_for_a_full_disk():
    def broken() -> Iterator[Thing]:
        yield things(1)[0]
        raise PermissionError("of a folder")

    with pytest.raises(PermissionError, match="of a folder"):
        ItemFile(broken(), Thing)


def test_two_folders_whose_keys_begin_alike_have_no_key_twice(tmp_path):
    for name in ("a.b/1.jpg", "aXb/1.jpg", "a_b/2.jpg"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).touch()
    made = tree_jobs(read_tree("imagefolder", tmp_path / "set"), shard_size=9, size=None)
    assert sorted(item.key for item in made[0].items) == ["aXb/1", "a_b/1", "a_b/2"]
    (tmp_path / "set" / "a_b" / "1.png").touch()
    with pytest.raises(ConfigError, match=r"a_b/1.png and .*a\.b/1.jpg would both have the key 'a_b/1'"):
        read_tree("imagefolder", tmp_path / "set")


def linked(folder: Path, count: int, *names: str) -> list[str]:
    """Folders that all are links to one, which has so many files of each name. Returns their names."""
    real = folder.parent / f"all-of-{folder.name}"
    real.mkdir(parents=True)
    folder.mkdir(parents=True)
    for number in range(PER_FOLDER):
        for name in names:
            (real / f"{number:06d}{name}").touch()
    found = [f"n{number:08d}" for number in range(count // PER_FOLDER)]
    for name in found:
        (folder / name).symlink_to(real, target_is_directory=True)
    return found


def folder_jobs(root: Path, count: int) -> list[ShardJob]:
    linked(root / "set" / "train", count, ".JPEG", ".txt")
    return tree_jobs(read_tree("imagefolder", root / "set"), shard_size=500, size=None)


def masks_jobs(root: Path, count: int) -> list[ShardJob]:
    linked(root / "leftImg8bit" / "train", count, "_leftImg8bit.png")
    linked(root / "gtFine" / "train", count, "_gtFine_labelIds.png")
    return tree_jobs(read_tree("cityscapes", root), shard_size=500, size=None)


def captions_jobs(root: Path, count: int) -> list[ShardJob]:
    names = linked(root / "images", count, ".jpg")
    with open(root / "table.jsonl", "w") as file:
        for name in names:
            for number in range(PER_FOLDER):
                row = {"image": f"images/{name}/{number:06d}.jpg", "caption": f"the picture {number}"}
                file.write(json.dumps(row) + "\n")
    return tree_jobs(read_tree("captions", root / "table.jsonl"), shard_size=500, size=None)


def memory(jobs_of: Callable[[Path, int], list[ShardJob]], root: Path, count: int) -> tuple[int, int]:
    """Bytes that are held with the jobs of so many pictures, and the most that were on the way to them and
    to their fingerprints."""
    gc.collect()
    tracemalloc.start()
    try:
        made = jobs_of(root, count)
        assert sum(len(job.items) for job in made) == count
        assert all(job.fingerprint() for job in made)
        gc.collect()
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("jobs_of", [folder_jobs, masks_jobs, captions_jobs])
def test_memory_does_not_grow_with_the_list_of_pictures(jobs_of, tmp_path, monkeypatch):
    """A list takes 300 bytes or more for each. For image folders not even the way to the jobs takes them,
    whatever is left out."""
    # pathlib does it to names; Python's table of them is made anew now and then, all of it
    monkeypatch.setattr(sys, "intern", lambda text: text)
    few, many = (memory(jobs_of, tmp_path / str(count), count) for count in (FEW, MANY))
    print(f"held {few[0]} and {many[0]} bytes, at most {few[1]} and {many[1]}")
    for grown in (many[0] - few[0], many[1] - few[1])[: 2 if jobs_of is folder_jobs else 1]:
        assert grown < 16 * (MANY - FEW)
