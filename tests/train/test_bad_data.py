"""What a run does about data that it cannot read: a few samples, too many of them, and a disk that is
away."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import damaged
from tinyrun import tiny_plain

from pipeline.config.load import from_plain
from pipeline.data.shards import patience
from pipeline.errors import SampleError, StorageError
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

STEPS = 10
"""Of 8 samples: an epoch of the 80."""
TRAIN, VAL = [f"train-0000{n}.tar" for n in range(3)], "val-00000.tar"


def plain_of(shards: Path, output: Path, accumulation: int = 1, **data: Any) -> dict[str, Any]:
    engine = dict(type="local", precision="fp32", accumulation=accumulation)
    return tiny_plain(shards, output, data=data, train=dict(steps=STEPS, log_every=5), engine=engine)


def lines(output: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (output / "metrics.jsonl").read_text().splitlines()))


def test_a_run_says_what_it_could_not_read_and_where(digits, tmp_path, capsys):
    holes = {(TRAIN[0], 3): "jpg", (TRAIN[0], 4): "cls", (TRAIN[2], 0): "jpg", (VAL, 7): "jpg"}
    train(from_plain(plain_of(damaged(digits, tmp_path / "shards", holes), tmp_path / "run")))
    told = lines(tmp_path / "run")
    assert [line["bad_samples"] for line in told if "bad_samples" in line][-1] == 3
    assert told[-1]["val/digits/samples"] == 24 and told[-1]["val/digits/missing"] == 1
    said = capsys.readouterr().err
    assert (
        "digits: 3 of 80 samples could not be read, and others took their places (train-00000.tar 2, "
        "train-00002.tar 1)" in said
    )
    assert "digits: 1 of 25 samples could not be read, and are not in its scores" in said


def test_scattered_bad_samples_have_a_budget(digits, tmp_path):
    """Never many in a row, as samples are shuffled over the shards."""
    shards = damaged(digits, tmp_path / "shards", {(TRAIN[1], sample): "jpg" for sample in range(0, 30, 2)})
    with pytest.raises(
        SampleError,
        match=r"digits: \d\d of \d\d samples could not be .*\(train-00001.tar \d\d\).*max_bad_share "
        r"allows 10",
    ):
        train(from_plain(plain_of(shards, tmp_path / "run")))
    assert any((tmp_path / "run" / "checkpoints").glob("step_*")), "the steps until then are not lost"
    train(from_plain(plain_of(shards, tmp_path / "generous", max_bad_share=0.2)))


def gone(size: int) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def noise(size: int) -> bytes:
    return b"\xfe" * size


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (gone, (StorageError, "train-0000.*Input/output error")),
        (noise, (SampleError, "bad samples in a row")),
    ],
)
@pytest.mark.parametrize(("workers", "accumulation", "batches"), [(0, 1, 3), (1, 1, 3), (0, 2, 7)])
def test_where_data_cannot_be_read_one_process_saves_and_continues_to_the_last_bit(
    digits, tmp_path, monkeypatch, workers, accumulation, batches, read, error
):
    """Also within a step: the second micro-batch of the fourth cannot be read, the first has drawn from the
    generators."""
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    train(from_plain(plain_of(digits, tmp_path / "whole", accumulation)))
    good = os.pread

    def pread(file: int, size: int, offset: int) -> bytes:
        pread.left -= 1
        if pread.left < 0:
            return read(size)
        return good(file, size, offset)

    pread.left = batches * 8 + 1  # and the first of the next: the members of a sample are read at once
    monkeypatch.setattr(os, "pread", pread)
    plain = plain_of(digits, tmp_path / "run", accumulation, max_wait=0.5, max_bad_samples=2, workers=workers)
    with pytest.raises(error[0], match=error[1]):
        train(from_plain(plain))
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    assert saved.name == "step_00000003"
    monkeypatch.setattr(os, "pread", good)
    train(from_plain(plain | {"tasks": plain_of(digits, tmp_path / "run", accumulation)["tasks"]}))
    ends = [
        read_checkpoint(tmp_path / name / f"checkpoints/step_{STEPS:08d}").tensors
        for name in ("whole", "run")
    ]
    assert ends[0].keys() == ends[1].keys() and all(
        torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items()
    )
