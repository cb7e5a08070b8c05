"""A run that starts anew where another one has been: nothing is lost, and nothing is moved before all of the
new run is checked."""

import pytest

from pipeline.errors import ConfigError
from pipeline.run_folder import checkpoints_of, last, step_of
from pipeline.train.lock import locked
from pipeline.train.loop import train

SHORT = dict(steps=2, log_every=1, eval_every=None)


@pytest.fixture
def tiny_run(tiny_run):
    """Runs that may end after their first step."""
    return lambda *output, optim=None, **sections: tiny_run(
        *output, optim=dict(warmup_steps=0) | (optim or {}), **sections
    )


def everything(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_run_that_was_there_is_kept_whole_and_files_of_others_stay(tiny_run, tmp_path):
    folder = train(tiny_run(train=SHORT))
    (folder / "notes.txt").write_text("mine")
    (folder / "sweep").mkdir()
    (folder / "sweep/sweep.json").write_text("[]")  # else a report of the new run would show it
    before = everything(folder)
    train(tiny_run(train=SHORT | dict(steps=1)), "overwrite")
    assert (folder / "aside-1/sweep/sweep.json").is_file()
    aside, now = everything(folder / "aside-1"), everything(folder)
    assert {name: before[name] for name in aside} == aside
    assert before.keys() - aside.keys() == {".lock", "notes.txt"} and now["notes.txt"] == b"mine"
    assert (
        step_of(last(checkpoints_of(folder))) == 1 and step_of(last(checkpoints_of(folder / "aside-1"))) == 2
    )
    train(tiny_run(train=SHORT), "overwrite")
    assert (folder / "aside-2/checkpoints/step_00000001").is_dir()


def test_a_folder_without_a_run_is_as_for_a_first_start(tiny_run, tmp_path):
    folder = train(tiny_run(train=SHORT), "overwrite")
    assert not list(folder.glob("aside-*"))


def test_nothing_is_moved_while_another_run_holds_the_folder_or_the_config_is_wrong(tiny_run, tmp_path):
    folder = train(tiny_run(train=SHORT))
    before = everything(folder)
    wrong = tiny_run(train=SHORT)
    wrong.tasks["digits"].head["num_classes"] = 3
    with pytest.raises(ConfigError, match="the shards have 10 classes"):
        train(wrong, "overwrite")
    with locked(folder), pytest.raises(ConfigError, match="in use by another run"):
        train(tiny_run(train=SHORT), "overwrite")
    assert {name: data for name, data in everything(folder).items() if name != ".lock"} == {
        name: data for name, data in before.items() if name != ".lock"
    }


@pytest.mark.parametrize("counter", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_start_after_the_first_goes_on(tiny_run, tmp_path, monkeypatch, counter):
    folder = train(tiny_run(train=SHORT))
    monkeypatch.setenv(counter, "1")
    train(tiny_run(train=SHORT), "overwrite")
    assert not list(folder.glob("aside-*")) and step_of(last(checkpoints_of(folder))) == 2


def test_a_mirror_with_another_runs_checkpoints_is_refused(tiny_run, tmp_path):
    mirrored = tiny_run(train=SHORT | dict(mirror=str(tmp_path / "mirror")))
    folder = train(mirrored)
    with pytest.raises(ConfigError, match="a new one does not touch"):
        train(mirrored, "overwrite")
    assert not list(folder.glob("aside-*"))
