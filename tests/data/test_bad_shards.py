"""What is wrong with a shard is said with its name, and does not become a batch."""

import io
import logging
import os
import struct
import tarfile
import tracemalloc
import zlib
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from shardkit import config, image, samples, write_tar

from pipeline.data.make.existing import index_shards
from pipeline.data.shards.tar_index import index_tar
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import SampleError
from pipeline.interfaces import Batch


def special(path: Path, kind: bytes, size: int = 0) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, (name, data) in enumerate(samples("s", 3)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if number == 2:
                info.type, info.linkname, info.size, data = kind, "/etc/passwd", size, b""
            tar.addfile(info, io.BytesIO(data) if data else None)
    return path


def bomb() -> bytes:
    """A PNG of 40 bytes whose header says 60,000 x 60,000."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_only_regular_files_are_samples(tmp_path, kind):
    with pytest.raises(
        SampleError, match=r"x\.tar.*s_001\.png.* regular files only|x\.tar: not a readable plain tar"
    ):
        index_tar(special(tmp_path / "x.tar", kind))


@pytest.mark.parametrize("cut", [1, 511, 512, 700, 5000])
def test_a_shard_that_was_cut_off_is_named_with_the_place(tmp_path, cut):
    path = write_tar(tmp_path / "x.tar", samples("s", 9))
    whole = index_tar(path)
    end = max(sum(place) for sample in range(len(whole)) for place in whole.members(sample).values())
    os.truncate(
        path, (end - cut) if cut != 512 else -(-end // 512) * 512
    )  # 512: cut right behind the last member
    with pytest.raises(SampleError, match=r"x\.tar.*byte \d+"):
        index_tar(path)


def test_bytes_of_noise_in_the_middle_are_not_the_end(tmp_path):
    path = write_tar(tmp_path / "x.tar", samples("s", 9))
    data = bytearray(path.read_bytes())
    at = index_tar(path).members(4)["cls"][0] - 512
    data[at : at + 512] = os.urandom(512)
    path.write_bytes(data)
    with pytest.raises(SampleError, match=r"x\.tar"):
        index_tar(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.cls", b"0"), ("b.cls", b"0"), ("a.png", b"")], "sample 'a' are not side by side"),
        ([("a.cls", b"0"), ("a.cls", b"1")], r"sample 'a' has two members \.cls"),
        ([("a.cls", b"0"), ("a.CLS", b"1")], r"two members \.cls"),
        ([("a\nb.cls", b"0")], "printable"),
        ([("k" * 2000 + ".cls", b"0")], "name that is too long"),
        ([("README", b"hello")], "holds no sample"),
    ],
)
def test_a_shard_whose_samples_cannot_be_told_apart_is_refused(tmp_path, members, message):
    with pytest.raises(SampleError, match=message):
        index_tar(write_tar(tmp_path / "x.tar", members))


def test_a_negative_size_does_not_send_the_reader_in_circles(tmp_path):
    path = write_tar(tmp_path / "x.tar", samples("s", 3))
    data = bytearray(path.read_bytes())
    data[124:136] = b"\xff" * 4 + struct.pack(">q", -2048)
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(SampleError, match=r"x\.tar"):
        index_tar(path)


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b\x08\0" + b"x" * 600, b"hello" * 300])
def test_what_is_no_tar_is_refused(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(SampleError, match=r"x\.tar"):
        index_tar(tmp_path / "x.tar")


def test_keys_and_suffixes_are_those_of_webdataset(tmp_path):
    members = [("./d.1/a.seg.PNG", b"1"), ("./d.1/a.cls", b"22"), ("b.cls", b"3"), ("__doc__", b"")]
    index = index_tar(write_tar(tmp_path / "x.tar", members))
    assert index.keys == ("./d.1/a", "b") and index.suffixes == ("cls", "seg.png")
    assert [{suffix: size for suffix, (_, size) in index.members(n).items()} for n in (0, 1)] == [
        {"cls": 2, "seg.png": 1},
        {"cls": 1},
    ]


@pytest.mark.parametrize("padding", [0, 10_240])
def test_a_tar_behind_a_tar_is_refused_and_not_read_half(tmp_path, padding):
    parts = [write_tar(tmp_path / f"{name}.tar", samples(name, 5)).read_bytes() for name in "ab"]
    (tmp_path / "x.tar").write_bytes(parts[0] + bytes(padding) + parts[1])
    with pytest.raises(SampleError, match=r"x\.tar: something follows its end mark at byte \d+"):
        index_tar(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(parts[0] + bytes(3_000_000))
    assert len(index_tar(tmp_path / "x.tar").keys) == 5


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
def test_a_huge_header_is_refused_before_it_is_in_memory(tmp_path, kind):
    """A file of 900 MB, of which none is on the disk."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, 900 << 20
    for path, start in (
        (tmp_path / "x.tar", b""),
        (tmp_path / "y.tar", write_tar(tmp_path / "y.tar", samples("s", 2)).read_bytes()),
    ):
        start = start[: start.rstrip(b"\0").__len__() // 512 * 512 + 512] if start else start
        path.write_bytes(start + info.tobuf(tarfile.USTAR_FORMAT))
        os.truncate(path, (900 << 20) + len(start) + 2048)
        tracemalloc.start()
        with pytest.raises(
            SampleError, match=rf"{path.name}: a header before byte \d+ says it has {900 << 20} bytes"
        ):
            index_tar(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        tracemalloc.stop()


BAD = {
    "bomb": ([("png", bomb()), ("cls", b"0")], "image bomb"),
    "empty": ([("png", b""), ("cls", b"0")], "0 bytes are not a JPEG, PNG or WebP"),
    "half": ([("png", image(3, (60, 60))[:4000]), ("cls", b"0")], "image"),
    "halfjpg": ([("jpg", image(3, (60, 60), "JPEG")[:2000]), ("cls", b"0")], "image"),
    "text": ([("png", b"import os"), ("cls", b"0")], "not a JPEG"),
    "label": ([("png", image()), ("cls", b"3")], "class 3 is not below 3"),
    "negative": ([("png", image()), ("cls", b"-1")], "is not a number"),
    "words": ([("png", image()), ("cls", b"cat")], "is not a number"),
    "nolabel": ([("png", image())], "classification needs cls"),
    "noimage": ([("cls", b"1")], "classification needs an image"),
}


def mixed(folder: Path, bad: list[str]) -> Path:
    """Ten good samples with the bad ones in their middle."""
    members = samples("a", 5)
    for name in bad:
        members += [(f"{name}.{suffix}", data) for suffix, data in BAD[name][0]]
    path = write_tar(folder / "part-00000.tar", members + samples("z", 5))
    index_shards([str(path)], folder, classes=["a", "b", "c"])
    return folder


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_counted_named_and_left_out(tmp_path, name, caplog):
    loader = build_eval_loader("t", config(mixed(tmp_path, [name]), eval_batch_size=4), rank=0, world_size=1)
    with caplog.at_level(logging.WARNING):
        keys = [key for batch in loader for key in batch.keys]
    assert len(keys) == 10 and name not in keys and loader.bad_samples == 1
    (line,) = [record.getMessage() for record in caplog.records if "bad sample" in record.getMessage()]
    assert "part-00000.tar" in line and f"'{name}'" in line and BAD[name][1] in line


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_in_a_row_stop_the_run(tmp_path, workers):
    folder = mixed(tmp_path, list(BAD))
    passes = build_eval_loader(
        "t",
        config(folder, eval_batch_size=20, max_bad_samples=len(BAD), workers=workers),
        rank=0,
        world_size=1,
    )
    assert sum(len(batch.keys) for batch in passes) == 10 and passes.bad_samples == len(BAD)
    stops = build_eval_loader(
        "t",
        config(folder, eval_batch_size=20, max_bad_samples=len(BAD) - 1, workers=workers),
        rank=0,
        world_size=1,
    )
    with pytest.raises(
        SampleError, match=f"{len(BAD)} bad samples in a row, the last one: part-00000.tar, sample 'noimage'"
    ):
        list(stops)


@pytest.mark.parametrize("size", [1, 5])
def test_evaluation_passes_over_a_batch_without_a_good_sample(tmp_path, size):
    loader = build_eval_loader(
        "t", config(mixed(tmp_path, list(BAD)), eval_batch_size=size), rank=0, world_size=1
    )
    assert sum(len(batch.images) for batch in loader) == 10 and loader.bad_samples == len(BAD)
    assert [not batches for batches in loader.in_place()] == [False] * (5 // size) + [True] * (10 // size) + [
        False
    ] * (5 // size)


def training(
    folder: Path, *, rank: int = 0, world_size: int = 1, start: int = 0, num: int = 30, **options
) -> list[Batch]:
    """Of a set with bad samples, so many positions of each rank, with a global batch of 6."""
    made = build_stream(
        "t", config(folder, **options), seed=3, rank=rank, world_size=world_size, batch_size=6 // world_size
    )
    made.load_state_dict({"samples": start})
    return list(islice(made, num // 6))


@pytest.fixture(scope="module")
def holed(tmp_path_factory) -> Path:
    """Four shards of five samples, of which one is corrupt as a whole and another has two bad ones at its
    end."""
    folder, tars = tmp_path_factory.mktemp("holed"), []
    for number in range(4):
        members = samples(f"s{number}", 5)
        if number == 2:
            members[-3:] = [("s2_003.cls", b"9"), ("s2_004.png", b"x"), ("s2_004.cls", b"0")]
        tars.append(str(write_tar(folder / f"part-{number}.tar", members)))
    index_shards(tars, folder, classes=["a", "b", "c"])
    at = index_tar(tars[1])
    with open(tars[1], "r+b") as file:
        for offset, size in (place for sample in range(5) for place in at.members(sample).values()):
            file.seek(offset)
            file.write(b"\xff" * size)
    return folder


BROKEN = {*(f"s1_00{n}" for n in range(5)), "s2_003", "s2_004"}


@pytest.mark.parametrize("size", [1, 6])
def test_the_place_of_a_bad_sample_is_taken_by_the_next_good_one(holed, size):
    stream = build_stream("t", config(holed, batch_size=size), seed=3, rank=0, world_size=1)
    batches, order = list(islice(stream, 30 // size)), stream.reader.order
    in_order = [f"s{at.shard}_{at.sample:03d}" for at in map(order.__getitem__, range(60))]
    expected = [next(key for key in in_order[place:] if key not in BROKEN) for place in range(30)]
    assert [key for batch in batches for key in batch.keys] == expected and all(
        len(batch.images) == size for batch in batches
    )
    bad = [key for key in in_order[:30] if key in BROKEN]
    assert (
        stream.bad_shards == Counter(f"part-{key[1]}.tar" for key in bad)
        and stream.bad_samples == len(bad) > 7
    )


@pytest.mark.parametrize("world_size, workers", [(1, 2), (2, 0), (3, 1), (6, 0)])
def test_what_takes_the_place_is_a_function_of_the_position(holed, world_size, workers):
    whole = training(holed)
    ranks = [training(holed, rank=rank, world_size=world_size, workers=workers) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([ranks[rank][step].images for rank in range(world_size)]), batch.images)
        assert sum((ranks[rank][step].keys for rank in range(world_size)), ()) == batch.keys
    resumed = training(holed, start=12, num=18)
    assert all(torch.equal(one.images, other.images) for one, other in zip(resumed, whole[2:], strict=True))


def test_a_sample_that_takes_another_place_is_augmented_anew(holed):
    whole = training(holed)
    views = [(key, image) for batch in whole for key, image in zip(batch.keys, batch.images, strict=True)]
    repeated = [(one[1], other[1]) for one, other in pairwise(views) if one[0] == other[0]]
    assert repeated and not any(torch.equal(*pair) for pair in repeated)


def test_keys_that_begin_anew_in_each_shard_have_draws_of_their_own(tmp_path):
    tars = [
        str(write_tar(tmp_path / f"part-{number}.tar", [("0.png", image(0, (40, 40))), ("0.cls", b"0")]))
        for number in range(8)
    ]
    index_shards(tars, tmp_path, classes=["a"])
    (batch,) = islice(build_stream("t", config(tmp_path), seed=0, rank=0, world_size=1, batch_size=8), 1)
    assert len({image.numpy().tobytes() for image in batch.images}) == 8


def test_where_no_good_sample_is_near_the_run_stops(tmp_path):
    tars = [
        str(
            write_tar(
                tmp_path / "part-0.tar", [("a.png", b"x"), ("a.cls", b"0"), ("b.png", b"x"), ("b.cls", b"0")]
            )
        )
    ]
    index_shards(tars, tmp_path, classes=["a"])
    with pytest.raises(
        SampleError,
        match=r"5 bad samples in a row, the last one: part-0.tar, sample '[ab]'.*1 bytes are not",
    ):
        next(
            iter(
                build_stream(
                    "t", config(tmp_path, max_bad_samples=4, batch_size=2), seed=0, rank=0, world_size=1
                )
            )
        )


def test_a_device_in_the_place_of_a_shard_is_not_read_without_end(tmp_path):
    (tmp_path / "a.tar").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "b.tar")
    for name in ("a.tar", "b.tar"):
        with pytest.raises(SampleError, match=f"{name}: is no file but a pipe or a device"):
            index_tar(tmp_path / name)
