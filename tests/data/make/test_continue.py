"""A maker of shards that is killed at any instant goes on where it was, and writes what an undisturbed one
writes."""

import json
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from shardkit import dtem, samples, write_tar
from tqdm import tqdm

from pipeline.data.make import existing, index_notes
from pipeline.data.make.existing import index_existing
from pipeline.data.make.index_notes import IndexNotes
from pipeline.data.make.write import ShardJob, jobs_of, write_shards
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.manifest import MANIFEST, UNFINISHED
from pipeline.errors import ConfigError, SampleError

FORK = multiprocessing.get_context("fork")
KILLS = int(os.environ.get("DTEM_KILLS", "6"))
SHARDS, EACH = 8, 12


def slowly(numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples that take a while, so that a kill comes in the middle of them."""
    for number in numbers:
        time.sleep(0.005)
        noise = random.Random(number).randbytes(3000 + 100 * (number % 7))
        yield f"{number:05d}", {"jpg": noise, "cls": str(number % 10).encode()}


def jobs(count: int = SHARDS * EACH) -> list[ShardJob]:
    return jobs_of("train", range(count), slowly, EACH)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make(out: Path) -> None:
    # the lock of forked processes, which would stay taken where one is killed that has it
    tqdm.set_lock(threading.RLock())
    write_shards(jobs(), out, workers=2)


def killed(out: Path, after: float) -> bool:
    """Starts a maker and ends it, with its workers, by SIGKILL after so many seconds. Returns whether it was
    still at work then."""
    maker = FORK.Process(target=make, args=(out,))
    maker.start()
    maker.join(after)
    at_work = maker.is_alive()
    workers = psutil.Process(maker.pid).children(recursive=True) if at_work else []
    maker.kill()
    maker.join()
    assert not psutil.wait_procs(workers, timeout=60)[1], "the workers of a killed maker end too"
    return at_work


def finished_shards(out: Path) -> dict[str, int]:
    """Maps the index of a finished shard to the number of the tar's file, which is another one when it is
    written again."""
    return {path.name: path.with_suffix("").stat().st_ino for path in out.glob("[!.]*.tar.index")}


def test_a_maker_that_is_killed_goes_on_and_writes_the_same_bytes(tmp_path, capsys):
    start = time.monotonic()
    write_shards(jobs(), tmp_path / "whole", workers=2)
    lasts, whole, rng = time.monotonic() - start, content(tmp_path / "whole"), random.Random(KILLS)
    kills = sets = within = 0
    while kills < KILLS:
        out, sets = tmp_path / f"out{sets}", sets + 1
        kept: dict[str, int] = {}
        while kills < KILLS and killed(out, rng.uniform(0, lasts)):
            kills += 1
            found = finished_shards(out)
            within += 0 < len(found) < SHARDS
            assert kept.items() <= found.items(), "a finished shard is not made again"
            kept = found
        if not (out / MANIFEST).exists() or (out / UNFINISHED).exists():
            write_shards(jobs(), out, workers=2)
        assert content(out) == whole
    with capsys.disabled():
        print(f"\n{kills} kills of makers, {within} with some shards finished, {sets} sets, 0 of other bytes")


def test_an_unfinished_set_is_not_read_and_no_other_is_mixed_into_it(tmp_path):
    def broken(numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
        yield from slowly(numbers)
        if 3 * EACH in numbers:
            raise SampleError("picture 36 is broken")

    made = jobs_of("train", range(SHARDS * EACH), broken, EACH)
    with pytest.raises(SampleError, match="picture 36"):
        write_shards(made, tmp_path)
    assert len(list(tmp_path.glob("*.tar"))) == 3
    with pytest.raises(SampleError, match="holds an unfinished set of shards"):
        load_manifest(str(tmp_path))
    with pytest.raises(SampleError, match="holds an unfinished set of shards"):
        index_existing(str(tmp_path), None, workers=1)
    assert not (tmp_path / MANIFEST).exists()
    for others in (jobs(), jobs_of("train", range(SHARDS * EACH - 1), broken, EACH)):
        with pytest.raises(ConfigError, match="holds the beginning of another set"):
            write_shards(others, tmp_path)


def test_a_manifest_that_the_maker_did_not_write_is_not_taken_for_the_whole(tmp_path):
    """As one by an older version of `make index`, over the shards that there were."""
    write_shards(jobs(), tmp_path / "whole")
    write_shards(jobs(2 * EACH), tmp_path / "out")
    (tmp_path / "out" / UNFINISHED).write_text(plan_of(tmp_path))
    with pytest.raises(SampleError, match="holds an unfinished set"):
        load_manifest(str(tmp_path / "out"))
    with pytest.raises(SampleError, match="holds an unfinished set"):
        load_manifest(str(tmp_path / "out" / "train-{00000..00001}.tar"))
    write_shards(jobs(), tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_second_maker_in_the_folder_is_refused(tmp_path):
    maker = FORK.Process(target=make, args=(tmp_path / "out",))
    maker.start()
    while not list((tmp_path / "out").glob("*.index")) and maker.is_alive():
        time.sleep(0.01)
    with pytest.raises(ConfigError, match=r"another maker is at work in .*out|holds shards already"):
        write_shards(jobs(), tmp_path / "out")
    maker.join()
    assert maker.exitcode == 0 and load_manifest(str(tmp_path / "out")).num_samples == SHARDS * EACH


def test_indexing_a_set_again_says_nothing_of_its_own_files(tmp_path, caplog):
    write_shards(jobs(EACH), tmp_path)
    with caplog.at_level("INFO"):
        index_existing(str(tmp_path), None, workers=1)
    assert "left out" not in caplog.text


def test_a_set_that_is_finished_is_not_made_again(tmp_path):
    write_shards(jobs(EACH), tmp_path)
    assert not (tmp_path / UNFINISHED).exists()
    with pytest.raises(ConfigError, match="holds shards already"):
        write_shards(jobs(EACH), tmp_path)


def test_a_shard_whose_index_is_not_whole_is_made_again(tmp_path):
    """As after a power failure, on a disk that keeps names before contents."""
    write_shards(jobs(), tmp_path / "whole")
    write_shards(jobs(), tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / UNFINISHED).write_text(plan_of(tmp_path))
    os.truncate(tmp_path / "out" / "train-00002.tar.index", 0)
    os.unlink(tmp_path / "out" / "train-00003.tar")
    write_shards(jobs(), tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def plan_of(tmp_path: Path) -> str:
    """What a maker of these shards leaves in the folder while it works."""
    killed(tmp_path / "begun", 0.3)
    while not (tmp_path / "begun" / UNFINISHED).exists():
        killed(tmp_path / "begun", 1.0)
    return (tmp_path / "begun" / UNFINISHED).read_text()


def test_what_the_maker_keeps_of_a_shard_does_not_grow_with_its_samples(tmp_path):
    """What comes back from a worker for each shard is a few hundred bytes, however many samples it has."""
    from pipeline.data.shards.describe import describe_tar

    sizes = []
    for count in (2, 200):
        tar = write_tar(tmp_path / f"{count}.tar", samples("s", count))
        described, index = describe_tar(str(tar), hashed=True)
        sizes.append(len(repr(described)))
        assert len(index) > 20 * count
    assert max(sizes) < 600 and max(sizes) - min(sizes) < 10


def test_index_and_hash_are_taken_without_reading_the_shard_again(tmp_path, monkeypatch):
    from pipeline.data.make import write

    for name in ("sha256_of", "count_classes"):
        monkeypatch.setattr(write, name, lambda *given: pytest.fail("read again"))
    write_shards(jobs(EACH), tmp_path)
    monkeypatch.undo()
    assert dtem("verify", tmp_path, "--quick", "--workers", 1) == 0


@pytest.fixture
def indexed(monkeypatch) -> list[str]:
    """The names of the tars that are read to index them; the fourth of them does not read."""
    read, whole = [], existing.describe_tar

    def counted(tar, *, hashed):
        read.append(Path(tar).name)
        if len(read) == 4:
            raise SampleError("cut off")
        return whole(tar, hashed=hashed)

    monkeypatch.setattr(existing, "describe_tar", counted)
    return read


def test_two_indexers_do_not_work_in_one_folder(tmp_path):
    write_shards(jobs(EACH), tmp_path)
    with IndexNotes(tmp_path), pytest.raises(ConfigError, match="another indexer is at work"):
        index_existing(str(tmp_path), None, workers=1)


@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
def test_notes_that_are_no_file_are_refused(what, tmp_path):
    write_shards(jobs(EACH), tmp_path)
    notes = tmp_path / index_notes.NAME
    {"link": lambda: notes.symlink_to("elsewhere"), "fifo": lambda: os.mkfifo(notes), "folder": notes.mkdir}[
        what
    ]()
    with pytest.raises(ConfigError, match="indexing.jsonl.* remove it"):
        index_existing(str(tmp_path), None, workers=1)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("changed", ["", "a tar", "an index", "a note", "half a note"])
def test_an_indexer_that_was_ended_reads_only_the_shards_that_it_does_not_know(indexed, changed, tmp_path):
    shards, out = tmp_path / "shards", tmp_path / "out"
    write_shards(jobs(), shards)
    names = sorted(path.name for path in shards.glob("*.tar"))
    with pytest.raises(SampleError, match="cut off"):
        index_existing(str(shards), str(out), workers=1)
    notes, index = out / index_notes.NAME, out / f"{names[1]}.index"
    if changed == "a tar":
        (shards / names[1]).write_bytes((shards / names[1]).read_bytes())
    elif changed == "an index":
        index.write_bytes(index.read_bytes()[:-1])
    elif changed == "a note":
        lines = notes.read_text().strip().splitlines()
        bad = ['{"tar": 1}', "null", "[]", '[1, 2, "3", 4, 5, 6]', "[" * 10**5]
        bad += [lines[1].replace(json.loads(lines[1])[3], "zz")]
        bad += [f"{lines[1].rpartition(',')[0]}, {number}]" for number in ("-1", "true", "10000000", "1.5")]
        notes.write_text("\n".join([lines[0], *bad, lines[2]]))
    elif changed == "half a note":
        lines = notes.read_text().strip().splitlines()
        notes.write_text("\n".join([lines[0], lines[2], lines[1][:-9]]))
    written = index_existing(str(shards), str(out), workers=1)
    assert indexed[4:] == [*([names[1]] if changed else []), *names[3:]]
    assert not notes.exists()
    anew = index_existing(str(shards), str(tmp_path / "anew"), workers=1)
    assert indexed[-SHARDS:] == names and written.read_bytes() == anew.read_bytes()
