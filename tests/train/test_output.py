"""The folder of a run: one writer at a time, nothing lost from it, and nothing written elsewhere by way of a
link."""

import gc
import json
import os
import signal
from pathlib import Path

import pytest
from forks import Fork

import tasks  # noqa: F401 - fills the registry of the process that is started
from pipeline.errors import CheckpointError, ConfigError
from pipeline.train import loop
from pipeline.train.lock import locked
from pipeline.train.loop import train
from pipeline.train.setup import build_run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def try_to_train(config) -> None:
    try:
        train(config)
        print("it trained")
    except ConfigError as err:
        print(err)


def in_another_process(config) -> str:
    """Not forked from this one, whose earlier tests may have started autograd's threads."""
    process = Fork(call=(try_to_train, config))
    assert process.wait() == 0, process.err
    return process.out.strip()


def test_a_second_run_in_the_same_folder_is_refused_and_told_by_whom(tiny_run, tmp_path, monkeypatch):
    config, said = tiny_run(), []
    step = loop.train_step

    def with_a_second_run(run, *rest):
        if run.progress.step == 1:
            said.append(in_another_process(config))
        return step(run, *rest)

    monkeypatch.setattr(loop, "train_step", with_a_second_run)
    train(config)
    assert f"in use by another run (process {os.getpid()} on " in said[0] and "give another output" in said[0]
    monkeypatch.undo()
    assert in_another_process(config) == "it trained", "the lock ends with the run"


def test_a_killed_run_keeps_nobody_out(tmp_path):
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        held = locked(tmp_path)
        os.write(writing, b"x")
        while not held.closed:
            signal.pause()
    os.read(reading, 1)
    with pytest.raises(ConfigError, match=f"process {child} on"):
        locked(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    locked(tmp_path).close()


def test_a_run_that_could_not_begin_leaves_the_folder_free_and_harms_no_later_one(tiny_run, tmp_path):
    """A record lock ends when its process closes any file of the same path."""
    config = tiny_run()
    with pytest.raises(CheckpointError) as kept:
        build_run(config, str(tmp_path / "nowhere"))
    run = build_run(config, "auto")
    with run.lock:
        kept = None
        gc.collect()
        assert "in use by another run" in in_another_process(config)
        with pytest.raises(ConfigError, match="in use by another run of this process"):
            build_run(config, "auto")
        assert "in use by another run" in in_another_process(config)
    assert kept is None and in_another_process(config) == "it trained"


@pytest.mark.parametrize("kind", ["link", "pipe", "second name"])
def test_a_lock_that_is_no_file_of_its_own_is_refused(tmp_path, kind):
    target = tmp_path / "precious"
    target.write_text("precious")
    lock = tmp_path / "run/.lock"
    lock.parent.mkdir()
    {
        "link": lambda: lock.symlink_to(target),
        "pipe": lambda: os.mkfifo(lock),
        "second name": lambda: os.link(target, lock),
    }[kind]()
    with pytest.raises(ConfigError, match="cannot be made or written to|no file of its own"):
        locked(lock.parent)
    assert target.read_text() == "precious"


def test_an_output_that_cannot_be_made_says_so(tiny_run):
    with pytest.raises(ConfigError, match="output /proc/nothing/here cannot be made or written to"):
        train(tiny_run(Path("/proc/nothing/here")))


STRANGE = [
    b'{"step": "x"}',
    b'{"step": null}',
    b'{"step": true}',
    b"[" * 100_000,
    b"\xff\xfe",
    b"7",
    b'{"step": 1, "lr"',
    b'{"step": -1}',
]


@pytest.mark.parametrize("line", STRANGE, ids=lambda line: repr(line[:16]))
def test_a_damaged_line_of_metrics_is_set_aside_and_the_run_goes_on(tiny_run, tmp_path, caplog, line):
    path, aside = tmp_path / "run/metrics.jsonl", tmp_path / "run/metrics.damaged.txt"
    train(tiny_run(train=dict(steps=4, log_every=1)))
    figures = lines(path)
    path.write_bytes(line + b"\n" + path.read_bytes())
    train(tiny_run(train=dict(steps=4, log_every=1)))
    assert lines(path) == figures
    assert aside.read_bytes() == line + b"\n"
    assert "1 lines are not figures of a step; they are kept in" in caplog.text


def test_figures_are_whole_however_the_start_of_a_resumed_run_ends(tiny_run, tmp_path, monkeypatch):
    path = tmp_path / "run/metrics.jsonl"
    train(tiny_run(train=dict(steps=4, log_every=1)))
    content = path.read_bytes()

    def die(*_):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("pipeline.files.sync", die)
        patch.setattr(loop, "write_config", lambda run: None)
        train(tiny_run(train=dict(steps=4, log_every=1)))
    assert path.read_bytes() == content


def test_a_mean_over_fewer_steps_than_usual_says_how_many(tiny_run, tmp_path):
    """After a resume between two reports, and at the end."""
    sections = dict(train=dict(steps=7, log_every=3, save_every=2, keep_checkpoints=9))
    train(tiny_run(**sections))
    path = tmp_path / "run/metrics.jsonl"
    means = [(line["step"], line.get("averaged_steps")) for line in lines(path) if "lr" in line]
    assert means == [(3, None), (6, None), (7, 1)]
    train(tiny_run(**sections), resume=str(tmp_path / "run/checkpoints/step_00000004"))
    means = [(line["step"], line.get("averaged_steps")) for line in lines(path) if "lr" in line]
    assert means == [(3, None), (6, 2), (7, 1)]


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "metrics.damaged.txt", "checkpoints/latest", "checkpoints/best"]
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(tiny_run, tmp_path, name, exists):
    target, path = tmp_path / "precious", tmp_path / "run" / name
    if exists:
        target.write_text("precious")
    path.parent.mkdir(parents=True)
    if name == "metrics.damaged.txt":
        (path.parent / "metrics.jsonl").write_text("damaged\n")
    path.symlink_to(target)
    train(tiny_run(train=dict(steps=4), optim=dict(ema_decay=0.0)))
    assert target.exists() == exists and (not exists or target.read_text() == "precious")
    assert path.is_file() and not path.is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_link_in_the_place_of_a_folder_is_refused(tiny_run, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"{name} is a symbolic link"):
        train(tiny_run(train=dict(steps=4)))
    assert not list((tmp_path / "elsewhere").iterdir())
