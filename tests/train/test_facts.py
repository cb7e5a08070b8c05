"""A checkpoint whose hashes fit but whose facts or tensors do not: of another version, made by hand, or of a
stranger."""

import os

import pytest
import torch
from checkpointkit import forge
from safetensors.torch import load_file, save_file
from tinyrun import tiny_plain

from pipeline.config.load import from_plain
from pipeline.errors import CheckpointError
from pipeline.files import sha256_of
from pipeline.train import storage
from pipeline.train.facts import TO_CONTINUE
from pipeline.train.loop import train

TWO_STEPS = dict(train=dict(steps=2), optim=dict(warmup_steps=1, ema_decay=0.9))
ABSENT = "(absent)"
WRONG = {
    "step": [-1, 1.0, True, "4\nssh-ed25519 AAAA", None, 10**30, ABSENT],
    "config": [[], "x"],
    "digest": [None, 5],
    "commit": [7],
    "versions": [[], {"torch": 2}],
    "world_size": [0, "2"],
    "global_batch": [[], {"digits": -8}],
    "progress": [
        [],
        {},
        {"step": -5, "samples": {}, "nonfinite": 0, "best": None},
        {"step": "x", "samples": {}, "nonfinite": 0, "best": None},
        {"step": 2, "samples": {}, "nonfinite": "x", "best": None},
        {"step": 2, "samples": {}, "nonfinite": 0, "best": None, "more": 1},
        {"step": 2, "samples": {}, "nonfinite": 0, "best": None, "evaluated": "x"},
        {"step": 2, "samples": {}, "nonfinite": 0, "best": None, "best_step": "x"},
        {"step": 1, "samples": {}, "nonfinite": 0, "best": None},
    ],
    "origins": ["x", [1], {}],
    "classes": [[], {"digits": "x"}, {"digits": [1]}],
    "streams": [[], {"digits": []}, {"digits": {"samples": "x"}}, {}],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values] + [
    (name, ABSENT) for name in TO_CONTINUE if name != "step"
]


@pytest.fixture(scope="module")
def half_run(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("half") / "run"
    train(from_plain(tiny_plain(digits, output, **TWO_STEPS)))
    return output / "checkpoints/step_00000002"


@pytest.fixture
def folder(half_run, tmp_path):
    """Its own checkpoint for each test: links to files that are replaced, never written to."""
    own = tmp_path / "given/step_00000002"
    own.mkdir(parents=True)
    for path in half_run.iterdir():
        os.link(path, own / path.name)
    return own


@pytest.mark.parametrize(("name", "value"), CASES, ids=repr)
def test_facts_that_do_not_fit_are_refused_in_one_message(tiny_run, folder, name, value):
    forge(
        folder / "manifest.json",
        lambda facts: facts.pop(name) if value is ABSENT else facts.update({name: value}),
    )
    with pytest.raises(CheckpointError, match="made by hand|another version"):
        train(tiny_run(**TWO_STEPS), resume=str(folder))


@pytest.mark.parametrize("file", ["optimizer", "ema"])
@pytest.mark.parametrize("change", ["absent", "shape"])
def test_tensors_that_do_not_fit_are_refused_before_anything_is_loaded(tiny_run, folder, file, change):
    path = folder / f"{file}.safetensors"
    tensors = (
        {}
        if change == "absent"
        else {name: torch.zeros(1, 1, dtype=t.dtype) for name, t in load_file(path).items()}
    )
    path.unlink()
    save_file(tensors, path)
    forge(folder / "manifest.json", lambda facts: facts["files"][path.name].update(sha256=sha256_of(path)))
    with pytest.raises(CheckpointError, match="cannot be continued: it lacks the"):
        train(tiny_run(**TWO_STEPS), resume=str(folder))


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_what_is_no_regular_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="no regular file|no manifest"):
        storage.read_checkpoint(folder)


@pytest.mark.parametrize("path", ["nope", "empty"])
def test_a_path_without_a_checkpoint_says_what_to_give(tiny_run, tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="step_|no manifest.json"):
        train(tiny_run(), resume=str(tmp_path / path))
