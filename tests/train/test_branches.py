"""Going back to an older checkpoint, and past damaged ones: nothing that is good is lost, and nothing of
another branch is continued."""

import logging
import shutil

import pytest
from checkpointkit import make_engine, save

from pipeline import run_folder
from pipeline.backbone.weights.files import read_state_dict
from pipeline.train import checkpoint, storage
from pipeline.train.loop import train


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
    assert caplog.text.count("is later than step 2, from which the run went on: it is kept as") == 4
    assert all(
        (root / "aside-step_00000006" / name).read_bytes() == content for name, content in saved.items()
    )
    assert run_folder.pointed(root, "latest").name == "step_00000006"


@pytest.mark.parametrize("cut", ["folder", "latest"])
def test_a_save_after_going_back_that_is_cut_short_leaves_one_branch(tmp_path, monkeypatch, cut):
    """The process dies as it renames the folder into place, or as it moves the pointer."""
    engine = make_engine()
    for step in (1, 5, 6):
        save(engine, tmp_path, step)
    moves = {"folder": (storage.Path, "rename"), "latest": (storage, "point")}
    owner, name = moves[cut]
    real = getattr(owner, name)

    def die(path, *rest):
        if cut == "latest" or path.name.startswith(".partial-step"):
            raise SystemExit
        return real(path, *rest)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(owner, name, die)
        storage.write_checkpoint(tmp_path, 3, engine.state_tensors(), {}, since=1)
    assert steps(tmp_path) == ([1] if cut == "folder" else [3, 1])
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == (1 if cut == "folder" else 3)


def test_latest_is_followed_before_a_newer_one(tmp_path):
    engine = make_engine()
    for step in (1, 2, 3):
        save(engine, tmp_path, step)
    run_folder.point(tmp_path, "latest", tmp_path / "step_00000002")
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == 2
    damage(tmp_path / "step_00000002")
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == 3


@pytest.mark.parametrize(
    "pointer", [b"\xff\xfe\x00", b"../../elsewhere", b"step_00000009", b"x" * 10_000, b""]
)
def test_a_pointer_that_makes_no_sense_is_none(tmp_path, pointer):
    engine = make_engine()
    save(engine, tmp_path, 1), save(engine, tmp_path, 2, best=True)
    for name in ("latest", "best"):
        (tmp_path / name).write_bytes(pointer)
        assert run_folder.pointed(tmp_path, name) is None
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == 2


def test_damaged_newest_ones_do_not_cost_a_good_one(tmp_path):
    engine = make_engine()
    for step in (1, 2, 3, 4):
        save(engine, tmp_path, step, keep=9)
    damage(tmp_path / "step_00000003"), damage(tmp_path / "step_00000004")
    since = checkpoint.load_latest(engine, tmp_path).facts["step"]
    save(engine, tmp_path, 5, since=since, keep=2)
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
