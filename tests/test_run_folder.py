"""One reader of a run's pointers: evaluation and a run that starts from these weights take the same
checkpoint."""

import shutil
from pathlib import Path

import pytest
import torch
from tinyrun import tiny_plain

from launch.saved.run import read_run
from pipeline.backbone.weights.files import read_state_dict
from pipeline.config.load import from_plain
from pipeline.errors import CheckpointError
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    """Checkpoints of steps 1, 2 and 3, without an average."""
    plain = tiny_plain(
        digits,
        tmp_path_factory.mktemp("pointers") / "run",
        train=dict(steps=3, save_every=1, keep_checkpoints=9),
    )
    del plain["tasks"]["digits"]["data"]["val"]
    return train(from_plain(plain | {"optim": plain["optim"] | {"ema_decay": 0.0}}))


STEPS = {step: f"step_{step:08d}" for step in (1, 2, 3, 9)}


@pytest.mark.parametrize(
    ("best", "latest", "taken"),
    [
        (STEPS[2], STEPS[3], 2),
        (None, STEPS[2], 3),
        (None, None, 3),
        (STEPS[9], STEPS[2], 3),
        ("aside", STEPS[2], 3),
        ("../elsewhere", "step_\u0661", 3),
        ("link", "step_00000004", 3),
    ],
)
def test_weights_are_of_the_checkpoint_that_evaluation_reads(run, tmp_path, best, latest, taken):
    """A pointer may be missing, name what was removed, or, in a stranger's run, lead elsewhere."""
    shutil.copytree(run, tmp_path / "run")
    root = tmp_path / "run" / "checkpoints"
    for elsewhere in (
        root / "aside",
        tmp_path / "run" / "elsewhere",
        tmp_path / "linked",
        root / "step_\u0661",
    ):
        shutil.copytree(root / STEPS[1], elsewhere)
    (root / "step_00000004").symlink_to(tmp_path / "linked")
    for name, pointed in {"best": best, "latest": latest}.items():
        (root / name).unlink(missing_ok=True)
        if pointed is not None:
            (root / name).write_text(pointed)
    expected, given = read_checkpoint(root / STEPS[taken]).tensors, read_state_dict(tmp_path / "run")
    assert read_run(tmp_path / "run").folder == root / STEPS[taken]
    assert given and all(torch.equal(tensor, expected[f"model.{name}"]) for name, tensor in given.items())


def test_a_folder_without_checkpoints_is_no_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoints/step"):
        read_run(tmp_path)
    with pytest.raises(CheckpointError, match="has no weights: neither model.safetensors nor"):
        read_state_dict(tmp_path)
