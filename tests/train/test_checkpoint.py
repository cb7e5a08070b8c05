import os
import random
import signal
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpointkit import forge, make_engine, save
from ranks import together
from standin import standin_config

from pipeline import run_folder
from pipeline.errors import CheckpointError
from pipeline.train import checkpoint, storage


def test_a_run_without_deepspeed_says_so_in_its_checkpoints(monkeypatch, tiny_run):
    """engine.type='local' does without the package; a run must not end at its first save for the lack of a
    version."""
    version = metadata.version

    def without_deepspeed(name):
        if name == "deepspeed":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_deepspeed)
    versions = checkpoint.run_facts(tiny_run(), 1)["versions"]
    assert versions["deepspeed"] == "not installed" and versions["timm"] == version("timm")


def test_what_is_saved_is_what_is_loaded(tmp_path):
    engine = make_engine()
    save(engine, tmp_path, 3)
    loaded = checkpoint.load_latest(engine, tmp_path)
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in engine.state_tensors().items())
    assert loaded.facts["step"] == 3 and loaded.facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (tmp_path / "latest").read_text() == "step_00000003"
    for path in (tmp_path, loaded.folder):
        assert checkpoint.load_path(engine, path).folder == loaded.folder


def test_git_is_asked_for_the_commit_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        checkpoint.subprocess, "run", lambda *args, **_: calls.append(args) or SimpleNamespace(stdout="abc")
    )
    checkpoint.commit.cache_clear()
    assert [checkpoint.run_facts(standin_config(), 1)["commit"] for _ in range(3)] == 3 * ["abc"] and len(
        calls
    ) == 1
    checkpoint.commit.cache_clear()


def test_nothing_to_load_is_none(tmp_path):
    assert checkpoint.load_latest(make_engine(), tmp_path / "absent") is None


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "manifest.json"],
)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_a_damaged_file_means_the_checkpoint_before(tmp_path, caplog, name, damage):
    engine = make_engine()
    save(engine, tmp_path, 1), save(engine, tmp_path, 2)
    path = tmp_path / "step_00000002" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    changed = {"truncated": path.read_bytes()[: len(content) // 2], "flipped": bytes(content), "empty": b""}
    path.unlink() if damage == "missing" else path.write_bytes(changed[damage])
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == 1
    assert "step_00000002" in caplog.text and "trying another one" in caplog.text


def test_when_all_are_damaged_the_run_does_not_start_anew(tmp_path):
    engine = make_engine()
    (save(engine, tmp_path, 1) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole"):
        checkpoint.load_latest(engine, tmp_path)


@pytest.mark.parametrize("operation", ["fsync", "rename"])
def test_a_full_disk_at_any_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, operation):
    engine = make_engine()
    save(engine, tmp_path, 1)
    owner = os if operation == "fsync" else Path
    real, failures = getattr(owner, operation), 0
    for moment in range(20):
        calls = iter(range(100))

        def fail(*args, calls=calls, moment=moment):
            if next(calls) == moment:
                raise OSError(28, "No space left on device")
            return real(*args)

        monkeypatch.setattr(owner, operation, fail)
        try:
            save(engine, tmp_path, 2)
        except CheckpointError as err:
            failures += 1
            assert "No space left" in str(err)
        monkeypatch.setattr(owner, operation, real)
        assert checkpoint.load_latest(engine, tmp_path).facts["step"] in (1, 2)
    assert failures >= 1
    save(engine, tmp_path, 2)
    assert not list(tmp_path.glob(".*"))


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    engine = make_engine()
    save(engine, tmp_path, 1)
    pause, newest = random.Random(0), 1
    for _ in range(15):
        if (child := os.fork()) == 0:
            while True:
                newest += 1
                save(engine, tmp_path, newest, keep=2)
        started = (tmp_path / "latest").read_text()
        while (
            tmp_path / "latest"
        ).read_text() == started:  # however busy the machine is, it saves once at least
            time.sleep(0.005)
        time.sleep(pause.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = checkpoint.load_latest(engine, tmp_path).facts["step"]
        assert found >= newest
        newest = found
    assert newest > 15, "each child saved"


def test_old_ones_go_but_never_the_best(tmp_path):
    engine = make_engine()
    for step in range(1, 7):
        save(engine, tmp_path, step, keep=2, best=2 if step >= 2 else None)
    assert [path.name[-1] for path in run_folder.complete_folders(tmp_path)] == ["6", "5", "2"]
    assert run_folder.pointed(tmp_path, "best").name.endswith("2")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    engine = make_engine()
    save(engine, tmp_path, 1)
    with torch.no_grad():
        engine.module.tasks["a"].weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="step 2 was not saved.*tasks.a.weight is not finite"):
        save(engine, tmp_path, 2)
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == 1


def test_a_folder_of_another_step_than_its_manifest_says_is_refused(tmp_path):
    engine = make_engine()
    save(engine, tmp_path, 1)
    save(engine, tmp_path, 2).rename(tmp_path / "step_00000007")
    with pytest.raises(CheckpointError, match="is of step 2, not of that in its folder's name"):
        storage.read_checkpoint(tmp_path / "step_00000007")
    assert checkpoint.load_latest(engine, tmp_path).facts["step"] == 1


def test_of_what_is_not_asked_for_nothing_is_read(tmp_path):
    """Evaluation takes the weights; the moments are twice as large."""
    folder = save(make_engine(), tmp_path, 1)
    (folder / "optimizer.safetensors").unlink()
    found = storage.read_checkpoint(folder, ("model", "ema"))
    assert {name.split(".")[0] for name in found.tensors} == {"model", "ema"}
    with pytest.raises(CheckpointError, match="optimizer.safetensors is not there"):
        storage.read_checkpoint(folder)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_read_each_file_once_among_them(tmp_path, monkeypatch, world_size):
    folder, read, real = save(make_engine(), tmp_path, 1), [], storage.sha256_of
    monkeypatch.setattr(storage, "sha256_of", lambda path: read.append(path.name) or real(path))
    found = together(world_size, lambda rank, ranks: checkpoint.load_latest(ranks, tmp_path))
    assert sorted(read) == sorted(path.name for path in folder.glob("*.safetensors"))
    assert {each.folder for each in found} == {folder}
    assert all(each.tensors.keys() == found[0].tensors.keys() for each in found)


@pytest.mark.parametrize("name", ["model", "optimizer", "ema"])
def test_what_one_rank_finds_damaged_no_rank_continues(tmp_path, name):
    for step in (1, 2):
        folder = save(make_engine(), tmp_path, step)
    path = folder / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    steps = together(3, lambda rank, ranks: checkpoint.load_latest(ranks, tmp_path).facts["step"])
    assert steps == [1, 1, 1]

    def refused(rank, ranks):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load_path(ranks, folder)
        return str(caught.value)

    assert together(3, refused) == 3 * [f"{path} is damaged: its sha256 is not the manifest's"]


def test_a_rank_that_does_not_see_the_output_of_rank_0_is_told_to_all(tmp_path):
    """Two hosts, each with a disk of its own."""
    save(make_engine(), tmp_path / "host0", 1)

    def refused(rank, ranks):
        with pytest.raises(CheckpointError) as caught:
            checkpoint._open(ranks, tmp_path / f"host{rank}" / "step_00000001")
        return str(caught.value)

    (message,) = set(together(2, refused))
    assert "host1" in message and "all processes need the same output, on a shared disk" in message


@pytest.mark.parametrize(
    "files",
    [{"../../etc/passwd": {"sha256": ""}}, {"/tmp/x": {"sha256": ""}}, [], None, {"model.safetensors": {}}],
)
def test_a_hostile_manifest_is_refused(tmp_path, files):
    folder = save(make_engine(), tmp_path, 1)
    forge(folder / "manifest.json", lambda facts: facts.update(files=files))
    with pytest.raises(CheckpointError, match="manifest|sha256"):
        storage.read_checkpoint(folder)
