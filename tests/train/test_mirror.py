"""Checkpoints are copied to other storage, whole or not at all, and a run goes on from there."""

import shutil

import pytest
import torch
from checkpointkit import make_engine, save

from pipeline import files
from pipeline.data.shards import locations, storage
from pipeline.errors import CheckpointError, ConfigError, OutageError, StorageError
from pipeline.interfaces import Progress
from pipeline.run_folder import complete_folders, pointed
from pipeline.train import branches, mirror
from pipeline.train.loop import train
from pipeline.train.mirror import mirror_at
from pipeline.train.saving import Saver
from pipeline.train.storage import read_checkpoint

LAST = "checkpoints/step_00000006"


@pytest.fixture(params=["path", "object store"])
def place(request, tmp_path, monkeypatch) -> str:
    """A folder, and a store without folders, in which fsspec's memory stands for s3."""
    if request.param == "path":
        return str(tmp_path / "mirror")
    monkeypatch.setattr(locations, "SCHEMES", (*locations.SCHEMES, "memory"))
    monkeypatch.setattr(mirror, "WRITABLE", (*mirror.WRITABLE, "memory"))
    return f"memory://{tmp_path}/mirror"


def steps(place: str) -> list[str]:
    return [name[-1] for name in mirror_at(place).names()]


def test_a_run_whose_disk_is_lost_goes_on_from_its_mirror_to_the_same_end(tiny_run, tmp_path, place):
    options = dict(steps=6, save_every=2)
    train(tiny_run(tmp_path / "whole", train=options | dict(eval_every=None)))
    config = tiny_run(tmp_path / "run", train=options | dict(mirror=place))
    train(config)
    assert steps(place) == ["6", "4"]
    at = mirror_at(place)
    for name in mirror.FILES[::-1]:
        storage.remove(f"{at.url}/{LAST}/{name}")
    shutil.rmtree(tmp_path / "run")
    train(config)
    whole, again = (read_checkpoint(tmp_path / name / LAST).tensors for name in ("whole", "run"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert steps(place) == ["6", "4"]
    assert {"config.json", "metrics.jsonl"} <= set(storage.names_in(at.url))


def test_another_output_continues_by_url(tiny_run, tmp_path, place):
    train(tiny_run(tmp_path / "run", train=dict(steps=6, save_every=2, mirror=place)))
    train(tiny_run(tmp_path / "other", train=dict(steps=6)), mirror_at(place).url)
    assert [folder.name for folder in complete_folders(tmp_path / "other/checkpoints")] == ["step_00000006"]


def test_the_best_stays_and_of_the_others_the_newest(tmp_path, place):
    engine, at = make_engine(), mirror_at(place)
    for step in range(1, 6):
        at.put(save(engine, tmp_path / "run/checkpoints", step, best=2 if step >= 2 else None), keep=2)
    assert steps(place) == ["5", "4", "2"]


def test_a_copy_that_was_cut_short_is_no_checkpoint(tmp_path, place, monkeypatch):
    engine, at, root = make_engine(), mirror_at(place), tmp_path / "run/checkpoints"
    at.put(save(engine, root, 1), keep=2)
    for number in range(4):
        calls, real = iter(range(100)), storage.upload

        def cut(*args, calls=calls, real=real, number=number):
            if next(calls) == number:
                raise OutageError("the cable is cut")
            return real(*args)

        with monkeypatch.context() as patch, pytest.raises(OutageError):
            patch.setattr(mirror, "upload", cut)
            at.put(save(engine, root, 2), keep=2)
        assert steps(place) == ["1"]
    at.put(root / "step_00000002", keep=2)
    assert steps(place) == ["2", "1"]
    fetched = at.fetch("step_00000002", tmp_path / "fetched")
    assert read_checkpoint(fetched).facts["step"] == 2


def test_a_mirror_that_fails_is_said_and_stops_nothing(tiny_run, tmp_path, monkeypatch, caplog, place):
    def refused(*_):
        raise OutageError("the bucket does not answer")

    monkeypatch.setattr(mirror, "upload", refused)
    train(tiny_run(train=dict(steps=4, save_every=2, mirror=place)))
    assert caplog.text.count("was not copied to") >= 2 and "it is on this disk alone" in caplog.text
    assert (tmp_path / "run/checkpoints/step_00000004").is_dir()


def test_what_is_evaluated_behind_the_last_save_costs_no_second_copy(tmp_path, place, monkeypatch):
    engine, at, root = make_engine(), mirror_at(place), tmp_path / "run/checkpoints"
    at.put(save(engine, root, 1), keep=2)
    copied, real = [], storage.upload
    monkeypatch.setattr(mirror, "upload", lambda path, *rest: copied.append(path.name) or real(path, *rest))
    with Saver(engine, root, 2) as saver:
        saver.restate(Progress(step=1, best_step=1), {})
        saver.settle(wait=True)
    at.put(root / "step_00000001", keep=2)
    assert copied == ["manifest.json", "latest", "best"]


def test_a_new_run_does_not_write_over_a_mirror(tiny_run, tmp_path, place):
    train(tiny_run(train=dict(steps=4, mirror=place)))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds checkpoints of a run, which a new one does not touch"):
        train(tiny_run(train=dict(steps=4, mirror=place)), "none")


def load(root, place):
    """The step that `auto` continues, once it is made lasting."""
    engine = make_engine()
    choice = branches.choose(engine, root, "auto", mirror_at(place))
    folder, _ = branches.make_lasting(engine, root, choice)
    assert choice.place in (str(folder), mirror_at(place).url)
    assert read_checkpoint(folder).facts["step"] == choice.found.facts["step"]
    return choice.found.facts["step"]


@pytest.mark.parametrize("older", [True, False])
def test_a_damaged_checkpoint_is_fetched_from_the_mirror(tmp_path, place, older):
    """Though an older one is whole here."""
    engine, at, root = make_engine(), mirror_at(place), tmp_path / "run/checkpoints"
    for step in (1, 2):
        at.put(save(engine, root, step), keep=2)
    (root / "step_00000002/model.safetensors").write_bytes(b"x")
    if not older:
        shutil.rmtree(root / "step_00000001")
    assert load(root, place) == 2
    assert complete_folders(root)[0].name == "step_00000002" and (root / "aside-step_00000002").is_dir()


@pytest.mark.parametrize("file", ["optimizer.safetensors", "manifest.json"])
def test_a_copy_that_is_damaged_is_passed_over(tmp_path, place, file):
    engine, at, root = make_engine(), mirror_at(place), tmp_path / "run/checkpoints"
    for step in (1, 2):
        at.put(save(engine, root, step), keep=2)
    shutil.rmtree(tmp_path / "run")
    storage.write_bytes(b'{"files": ', f"{at.url}/checkpoints/step_00000002/{file}")
    assert load(root, place) == 1
    assert [folder.name for folder in complete_folders(root)] == ["step_00000001"]


def test_where_nothing_is_whole_the_mirror_is_named(tmp_path, place):
    engine, at, root = make_engine(), mirror_at(place), tmp_path / "run/checkpoints"
    at.put(save(engine, root, 1), keep=2)
    (root / "step_00000001/model.safetensors").write_bytes(b"x")
    storage.write_bytes(b"x", f"{at.url}/checkpoints/step_00000001/model.safetensors")
    with pytest.raises(CheckpointError, match=f"none in {at.url}, is whole"):
        load(root, place)


def test_the_best_one_is_fetched_with_the_newest(tmp_path, place):
    engine, at, root = make_engine(), mirror_at(place), tmp_path / "run/checkpoints"
    for step in (1, 2, 3):
        at.put(save(engine, root, step, best=1), keep=1)
    shutil.rmtree(tmp_path / "run")
    assert load(root, place) == 3 and pointed(root, "best") == root / "step_00000001"


def test_what_a_run_leaves_by_going_back_is_set_aside_in_the_mirror_too(tmp_path, place):
    engine, at, root = make_engine(), mirror_at(place), tmp_path / "run/checkpoints"
    for step in (1, 2, 3):
        at.put(save(engine, root, step), keep=9)
    branches.make_lasting(engine, root, branches.choose(engine, root, str(root / "step_00000001"), None))
    at.put(root / "step_00000001", keep=9)
    assert steps(place) == ["1"]
    assert mirror.ASIDE in storage.names_in(f"{at.url}/checkpoints/step_00000003")
    shutil.rmtree(tmp_path / "run")
    assert load(root, place) == 1


def test_a_copy_at_a_path_that_is_cut_short_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    """And it is synced before it has its name."""
    source, target, synced = tmp_path / "source", tmp_path / "mirror/x", []
    source.write_bytes(b"new")
    storage.upload(source, f"file://{target}")
    monkeypatch.setattr(files, "sync", lambda path: synced.append(path.read_bytes()))
    storage.upload(source, f"file://{target}")
    assert synced == [b"new"]

    def cut(path, part):
        part.write_bytes(b"n")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.shutil, "copyfile", cut)
    with pytest.raises(StorageError, match="No space left"):
        storage.upload(source, f"file://{target}")
    assert target.read_bytes() == b"new" and [path.name for path in target.parent.iterdir()] == ["x"]


def test_a_mirror_has_one_output(tmp_path, place, caplog):
    """An empty one takes it over, and says so; the other one then keeps no copies."""
    engine, first, second = make_engine(), mirror_at(place), mirror_at(place)
    one, other = tmp_path / "one", tmp_path / "other"
    first.put(save(engine, one / "checkpoints", 1), keep=2)
    first.check_owner(one), second.check_owner(other)
    second.put(save(engine, other / "checkpoints", 2), keep=2)
    assert f"was the mirror of {one}, and is that of {other} from now on" in caplog.text
    with pytest.raises(StorageError, match=f"was taken over by another output, {other}"):
        first.put(save(engine, one / "checkpoints", 3), keep=2)
    assert steps(place) == ["2", "1"]
    with pytest.raises(ConfigError, match=f"is the mirror of another output, {other}"):
        mirror_at(place).check_owner(one)


@pytest.mark.parametrize("inside", ["run", "run/mirror", "run/../run"])
def test_a_mirror_within_the_output_is_refused(tiny_run, tmp_path, inside):
    with pytest.raises(ConfigError, match="lies in the output"):
        train(tiny_run(tmp_path / "run", train=dict(mirror=str(tmp_path / inside))))


@pytest.mark.parametrize("answer", [RecursionError(), KeyError("x"), OSError()])
def test_a_strange_answer_of_a_mirror_stops_nothing(tiny_run, tmp_path, monkeypatch, caplog, place, answer):
    def strange(*_):
        raise answer

    monkeypatch.setattr(mirror.Mirror, "_read", strange)
    train(tiny_run(train=dict(steps=4, save_every=1, eval_every=None)))
    train(tiny_run(train=dict(steps=4, save_every=1, eval_every=None, mirror=place)))
    assert f"({answer!r})" in caplog.text
    assert (tmp_path / "run/checkpoints/step_00000004").is_dir()


@pytest.mark.parametrize("location", ["https://a.org/x", "pipe:ls", "ftp://x/y", "a\n", "-x", ""])
def test_what_cannot_be_written_to_is_refused_before_the_run_begins(tiny_run, tmp_path, location):
    with pytest.raises(ConfigError, match=r"train\.mirror"):
        train(tiny_run(train=dict(steps=4, mirror=location)))
    assert not (tmp_path / "run").exists()
