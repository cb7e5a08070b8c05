"""A run whose tasks share a pool of workers is the run that it would be without."""

import pytest
import torch
from tinyrun import tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.errors import ConfigError
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint
from pipeline.train.waiting import DataWait


def run(digits, output, *, start=None, mode="sampled", **options):
    plain = tiny_tasks_plain(
        digits,
        output,
        mixing=dict(mode=mode),
        train=dict(mode="joint", steps=4, save_every=2, **options),
        tasks=dict(masks=dict(accumulation=2)),
    )
    for task in plain["tasks"].values():
        task["data"] |= dict(val=None)
    if start is not None:
        plain["tasks"]["masks"]["data"]["start_workers"] = start
    return from_plain(plain)


@pytest.mark.parametrize("mode", ["sampled", pytest.param("all", marks=pytest.mark.slow)])
def test_a_run_with_a_pool_and_one_that_goes_on_without_end_as_one_with_own_workers(digits, tmp_path, mode):
    train(run(digits, tmp_path / "own", mode=mode))
    train(run(digits, tmp_path / "pool", mode=mode, workers=2))
    half = tmp_path / "pool/checkpoints/step_00000002"
    train(run(digits, tmp_path / "on", mode=mode), resume=str(half))
    own, *others = (
        read_checkpoint(tmp_path / name / "checkpoints/step_00000004") for name in ("own", "pool", "on")
    )
    for other in others:
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in own.tensors.items())
        assert (other.facts["progress"], other.facts["streams"]) == (
            own.facts["progress"],
            own.facts["streams"],
        )


def test_a_pool_starts_all_of_its_workers_in_one_way(digits, tmp_path):
    with pytest.raises(ConfigError, match=r"tasks.masks.data.start_workers='spawn'; give one"):
        train(run(digits, tmp_path / "run", workers=1, start="spawn"))


def test_a_run_that_waits_is_told_of_the_pool(digits, tmp_path):
    wait = DataWait(run(digits, tmp_path / "run", workers=3))
    wait.word(0.5)
    said = wait.word(0.5)
    assert said is not None and "train.workers, now 3" in said and "data.workers" not in said
