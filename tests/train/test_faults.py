"""A run that a fault has struck ends, when it is started again, where a clean run ends, to the last bit."""

import signal
from pathlib import Path

import pytest
import torch
from forks import Fork

import tasks  # noqa: F401 - fills the registry of the process that is started
from pipeline.errors import ConfigError, StorageError
from pipeline.run_folder import complete_folders
from pipeline.train.faults.fault import FAULTS
from pipeline.train.faults.injection import Injection
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

STEPS = 4
SETTINGS = dict(steps=STEPS, log_every=1, save_every=2, keep_checkpoints=9)
SAID = {
    "kil@step=1": "did you mean 'kill'",
    "kill": "is no fault with its options",
    "kill@step": "is no fault with its options",
    "kill@": "is no fault with its options",
    "kill@step=1,step=2": "gives a key twice",
    "kill@step=x": "step is 'x'; give a value of type int",
    "kill@step=1,rang=0": "unexpected keyword argument 'rang'",
    "kill@rank=1": "missing a required argument: 'step'",
    "kill@step=-1": "step is -1; give 0 or more",
    "kill@step=1,what=all": "give rank, worker or term",
    "stall@step=1,seconds=0": "give a number above 0",
    "outage@step=1,seconds=-3": "give a number above 0",
    "enospc@save=0": "save is 0; give 1 or more",
    "enospc@step=1": "argument",
}
NEVER = {
    "kill@step=4": "the steps are 0 to 3",
    "nan@step=1,rank=1": "the ranks are 0 to 0",
    "stall@step=1,seconds=1": "needs data workers",
    "kill@step=1,what=worker": "needs data workers",
}


@pytest.fixture(scope="module")
def clean(digits, tmp_path_factory) -> Path:
    from tinyrun import tiny_plain

    from pipeline.config.load import from_plain

    folder = tmp_path_factory.mktemp("clean") / "run"
    train(from_plain(tiny_plain(digits, folder, train=SETTINGS)))
    return folder


def assert_same_end(one: Path, other: Path) -> None:
    a, b = (read_checkpoint(folder / f"checkpoints/step_{STEPS:08d}") for folder in (one, other))
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def saved(output: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in complete_folders(output / "checkpoints"))


@pytest.mark.parametrize("spec", SAID)
def test_a_wrong_spec_is_told(spec):
    with pytest.raises(ConfigError) as raised:
        Injection([spec])
    assert SAID[spec] in str(raised.value)


def test_a_spec_is_given_once():
    with pytest.raises(ConfigError, match="is given twice"):
        Injection(["nan@step=1", "nan@step=1"])


@pytest.mark.parametrize("spec", NEVER)
def test_a_fault_that_would_never_strike_is_refused(tiny_run, spec):
    with pytest.raises(ConfigError) as raised:
        train(tiny_run(train=SETTINGS), faults=Injection([spec]))
    assert NEVER[spec] in str(raised.value)


STRUCK = {
    "kill@step=3,what=term": (dict(), None, [2, 3]),
    "stall@step=1,seconds=1": (dict(workers=1), None, [2, 4]),
    "outage@step=3,seconds=0.5": (dict(), None, [2, 4]),
    "outage@step=3,seconds=600": (dict(max_wait=0.5), StorageError, [2, 3]),
    "enospc@save=2": (dict(), None, [2, 4]),
}
"""Spec -> settings of the data, the error that ends the run, and the steps that are saved then."""


@pytest.mark.parametrize("spec", STRUCK)
def test_a_run_that_was_struck_ends_where_a_clean_one_ends(tiny_run, tmp_path, clean, spec):
    data, error, steps = STRUCK[spec]
    output = tmp_path / "run"

    def go() -> None:
        train(tiny_run(data=data, train=SETTINGS), faults=Injection([spec]))

    if error is None:
        go()
    else:
        with pytest.raises(error):
            go()
    assert saved(output) == steps
    assert [mark.name for mark in (output / "injected").iterdir()] == [f"{spec}.rank_00000"]
    go()
    assert_same_end(clean, output)


def test_a_nan_is_skipped_and_counted(tiny_run, tmp_path):
    train(tiny_run(train=SETTINGS), faults=Injection(["nan@step=1"]))
    assert '"skipped_in_row": 1' in (tmp_path / "run/metrics.jsonl").read_text()
    assert all(
        tensor.isfinite().all()
        for tensor in read_checkpoint(tmp_path / "run/checkpoints/step_00000004").tensors.values()
    )


def test_samples_of_a_corrupt_shard_are_counted(tiny_run, tmp_path):
    config = tiny_run(data=dict(max_bad_share=1.0), train=SETTINGS)
    train(config, faults=Injection(["corrupt-shard@step=1"]))
    assert '"bad_samples": 0' in (text := (tmp_path / "run/metrics.jsonl").read_text())
    assert any(f'"bad_samples": {count}' in text for count in range(1, 100)) and saved(tmp_path / "run") == [
        2,
        4,
    ]


def killed(config) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    train(config, faults=Injection(["kill@step=3"]))


def test_a_killed_rank_goes_on_from_its_last_checkpoint(tiny_run, tmp_path, clean):
    config = tiny_run(train=SETTINGS | dict(save_every=1))
    process = Fork(call=(killed, config))
    process.wait()
    # the save of step 3 may not be complete by then, the one before it is
    assert process.returncode == -signal.SIGKILL and {1, 2} <= set(saved(tmp_path / "run"))
    train(config, faults=Injection(["kill@step=3"]))
    assert_same_end(clean, tmp_path / "run")


def test_every_fault_is_in_the_page():
    page = (Path(__file__).parents[2] / "docs/reliability.md").read_text()
    assert all(f"`{name}@" in page for name in FAULTS.names())
