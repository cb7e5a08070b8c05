"""Going back to an older checkpoint, and past damaged ones: nothing that is good is lost, and nothing of
another branch is continued."""

import logging
import os
import shutil

import pytest
import torch
from checkpointkit import make_engine, save
from forks import Fork

import tasks  # noqa: F401 - fills the registry of the process that is started
from pipeline import run_folder
from pipeline.backbone.weights.files import read_state_dict
from pipeline.errors import CheckpointError
from pipeline.train import branches, checkpoint, loop, saving, storage
from pipeline.train.faults.injection import Injection
from pipeline.train.loop import train

DIED = 7
"""Exit code of a process that ends itself at once."""


def steps(root) -> list[int]:
    return [run_folder.step_of(folder) for folder in run_folder.complete_folders(root)]


def damage(folder):
    (folder / "model.safetensors").write_bytes(b"")


def test_what_is_saved_after_going_back_stays_and_the_branch_that_was_left_is_set_aside(
    tiny_run, tmp_path, caplog
):
    caplog.set_level(logging.WARNING)
    root = tmp_path / "run/checkpoints"
    train(tiny_run(train=dict(steps=6, save_every=1, keep_checkpoints=5)))
    assert steps(root) == [6, 5, 4, 3, 2]
    saved = {
        name: (root / "step_00000006" / name).read_bytes() for name in ("manifest.json", "model.safetensors")
    }
    train(tiny_run(train=dict(steps=6, save_every=2, keep_checkpoints=2)), resume=str(root / "step_00000002"))
    assert steps(root) == [6, 4]
    assert caplog.text.count("is not of the branch of step 2, from which the run goes on: it is kept as") == 4
    assert all(
        (root / "aside-step_00000006" / name).read_bytes() == content for name, content in saved.items()
    )
    assert run_folder.pointed(root, "latest").name == "step_00000006"


@pytest.mark.parametrize("after", ["step 7 is done", "the branch is set aside"])
@pytest.mark.parametrize("resume", ["auto", pytest.param("PATH", marks=pytest.mark.slow)])
def test_a_run_that_went_back_and_is_killed_before_it_saves_goes_on_from_there(
    tiny_run, tmp_path, after, resume
):
    """Given again, PATH leads to what was saved since; `auto` too."""
    root, run = tmp_path / "run/checkpoints", dict(steps=12, keep_checkpoints=9, eval_every=None)
    path = str(root / "step_00000004")
    train(tiny_run(train=run | dict(save_every=2)), faults=Injection(["kill@step=8,what=term"]))
    killed(tiny_run(train=run | dict(save_every=50)), path, after)
    assert steps(root) == [4, 2] and (root / "latest").read_text() == "step_00000004"
    given = path if resume == "PATH" else resume
    train(tiny_run(train=run | dict(save_every=5)), given, Injection(["kill@step=6,what=term"]))
    assert steps(root) == [6, 5, 4, 2]
    shutil.rmtree(path)
    train(tiny_run(train=run | dict(save_every=5)), given)
    assert steps(root) == [12, 10, 6, 5, 2]


def test_a_run_that_began_at_another_run_and_is_killed_before_it_saves_goes_on_from_there(tiny_run, tmp_path):
    there, root = tmp_path / "there/checkpoints", tmp_path / "run/checkpoints"
    settings = dict(steps=8, keep_checkpoints=9, eval_every=None)
    train(tiny_run(tmp_path / "there", train=settings | dict(save_every=4)))
    path = str(there / "step_00000004")
    killed(tiny_run(train=settings | dict(save_every=50)), path, "step 7 is done")
    assert steps(root) == [4] and storage.read_manifest(root / "step_00000004")["origins"] == [path]
    train(tiny_run(train=settings), "auto", Injection(["kill@step=6,what=term"]))
    shutil.rmtree(tmp_path / "there")
    train(tiny_run(train=settings), path)
    assert steps(root) == [8, 6, 4]


def test_what_another_output_holds_is_copied_and_what_was_here_is_set_aside(tmp_path):
    """A run there and one here have the same step."""
    engine = make_engine()
    for step in (1, 2):
        save(engine, tmp_path / "here/checkpoints", step)
    there = save(engine, tmp_path / "there/checkpoints", 2)
    root = tmp_path / "here/checkpoints"
    choice = branches.choose(engine, root, str(tmp_path / "there"), None)
    folder, best = branches.make_lasting(engine, root, choice)
    assert (folder, best, steps(root)) == (root / "step_00000002", None, [2])
    assert {path.name for path in root.glob("aside-*")} == {"aside-step_00000001", "aside-step_00000002"}
    found = storage.read_checkpoint(folder)
    assert found.facts["origins"] == [str(tmp_path / "there")]
    assert found.facts["files"] == storage.read_manifest(there)["files"]


def killed(config, resume: str, after: str) -> None:
    """A run that is ended in a process of its own."""
    assert Fork(call=(run_until, config, resume, after)).wait() == DIED


def run_until(config, resume: str, after: str) -> None:
    torch.set_num_threads(1)
    owner, name = (loop, "_train") if "aside" in after else (loop, "train_step")
    real = getattr(owner, name)

    def die(run, *rest):
        if "aside" in after or run.progress.step == 7:
            os._exit(DIED)
        return real(run, *rest)

    setattr(owner, name, die)
    train(config, resume)


def test_a_run_that_is_killed_behind_the_rename_of_a_checkpoint_goes_on_from_it(tmp_path, monkeypatch):
    """`latest` still names the one before, and is mended by the next start."""
    engine = make_engine()
    save(engine, tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(CheckpointError):
        patch.setattr(saving, "point", die)
        save(engine, tmp_path, 2)
    assert (tmp_path / "latest").read_text() == "step_00000001"
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == 2
    assert run_folder.last(tmp_path) == tmp_path / "step_00000002"
    choice = branches.choose(engine, tmp_path, "auto", None)
    branches.make_lasting(engine, tmp_path, choice)
    assert (tmp_path / "latest").read_text() == "step_00000002" and not list(tmp_path.glob("aside-*"))


def die(*_):
    raise SystemExit


@pytest.mark.parametrize(
    "pointer", [b"\xff\xfe\x00", b"../../elsewhere", b"step_00000009", b"x" * 10_000, b""]
)
def test_a_pointer_that_makes_no_sense_is_none(tmp_path, pointer):
    engine = make_engine()
    save(engine, tmp_path, 1), save(engine, tmp_path, 2, best=2)
    for name in ("latest", "best"):
        (tmp_path / name).write_bytes(pointer)
        assert run_folder.pointed(tmp_path, name) is None
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == 2


def test_damaged_newest_ones_do_not_cost_a_good_one(tmp_path):
    engine = make_engine()
    for step in (1, 2, 3, 4):
        save(engine, tmp_path, step, keep=9)
    damage(tmp_path / "step_00000003"), damage(tmp_path / "step_00000004")
    choice = branches.choose(engine, tmp_path, "auto", None)
    branches.make_lasting(engine, tmp_path, choice)
    assert steps(tmp_path) == [2, 1] and len(list(tmp_path.glob("aside-*"))) == 2
    save(engine, tmp_path, 5, keep=2)
    assert steps(tmp_path) == [5, 2]
    damage(tmp_path / "step_00000005")
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == 2


def test_steps_are_ordered_as_numbers(tmp_path):
    engine = make_engine()
    save(engine, tmp_path, 99_999_999), save(engine, tmp_path, 100_000_000)
    assert steps(tmp_path) == [100_000_000, 99_999_999]
    shutil.copytree(tmp_path / "step_99999999", tmp_path / "step_x")
    assert steps(tmp_path) == [100_000_000, 99_999_999]


def test_starting_weights_are_the_last_ones_where_the_best_were_set_aside(tiny_run, tmp_path):
    root = tmp_path / "run/checkpoints"
    train(tiny_run(train=dict(steps=4)))
    (root / "step_00000003").mkdir()
    run_folder.point(root, "best", root / "step_00000003")
    (root / "step_00000003").rename(root / "aside-step_00000003")
    assert read_state_dict(tmp_path / "run").keys() == read_state_dict(root / "step_00000004").keys()
