"""Starting weights: what they lack is said, and refused where it would stay random."""

import logging

import pytest
from safetensors.torch import save_file
from tinyrun import tiny_plain

import tasks  # noqa: F401 - fills the registry
from pipeline.config.load import from_plain
from pipeline.errors import CheckpointError
from pipeline.model import build_model


def config_with(tmp_path, weights, mode):
    plain = tiny_plain(tmp_path, tmp_path / "run")
    plain["backbone"] |= {"weights": str(weights)}
    plain["train"] |= {"mode": mode}
    plain["objective"] = {"type": "supervised"}
    return from_plain(plain)


@pytest.fixture
def headless(tmp_path):
    """Weights of a whole backbone, without a head and without metric embeddings."""
    plain = tiny_plain(tmp_path, tmp_path / "run")
    state = build_model(from_plain(plain)).backbone.state_dict()
    path = tmp_path / "headless.safetensors"
    save_file({name: tensor for name, tensor in state.items() if ".metric." not in name}, path)
    return path


def test_modular_training_refuses_to_freeze_a_random_head(tmp_path, headless):
    with pytest.raises(CheckpointError, match=r"has no tasks\.\w+\.head"):
        build_model(config_with(tmp_path, headless, "modular"))


def test_other_modes_train_what_the_weights_lack_and_say_so(tmp_path, headless, caplog):
    with caplog.at_level(logging.INFO):
        build_model(config_with(tmp_path, headless, "joint"))
    assert "took" in caplog.text and "kept own values" in caplog.text
