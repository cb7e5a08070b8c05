"""`dtem convert`: weights of somebody's checkpoint as a file of tensors alone."""

import argparse
import stat

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file as timm's train.py writes it, of a model with 7 classes, and its averaged state."""
    torch.manual_seed(0)
    state = {key: value + 1 for key, value in timm.create_model(NAME, num_classes=7).state_dict().items()}
    trained = {key: torch.zeros_like(value) for key, value in state.items()}
    content = {
        "state_dict": trained,
        "state_dict_ema": {f"module.{key}": value for key, value in state.items()},
    }
    path = tmp_path_factory.mktemp("timm") / "model_best.pth.tar"
    torch.save(content | {"arch": NAME, "epoch": 3, "args": argparse.Namespace(lr=1)}, path)
    return path, state


def test_the_averaged_weights_come_by_default_and_loads_in_timm(dtem, checkpoint, tmp_path, monkeypatch):
    path, state = checkpoint
    monkeypatch.chdir(tmp_path)
    said = dtem("convert", path)
    assert f"took state_dict_ema ({len(state)} tensors" in said and "left out: state_dict, arch" in said
    assert f"wrote model_best.safetensors: {len(state)} tensors" in said
    timm.create_model(NAME, num_classes=7).load_state_dict(load_file("model_best.safetensors"), strict=True)
    assert torch.equal(load_file("model_best.safetensors")["head.bias"], state["head.bias"])
    assert "is there already" in dtem("convert", path, code=2)


def test_the_weights_that_were_trained_and_a_part_of_them(dtem, checkpoint, tmp_path):
    path, _ = checkpoint
    out = tmp_path / "new" / "blocks.safetensors"
    dtem("convert", path, "--prefer", "model", "--prefix", "blocks.3.", "--out", out)
    found = load_file(out)
    assert found["norm1.weight"].shape == (192,) and not any(tensor.any() for tensor in found.values())
    said = dtem("convert", path, "--prefix", "student.", "--out", tmp_path / "no.safetensors", code=2)
    assert "no tensor's name goes on behind 'student.'; names begin with module." in said
    assert not (tmp_path / "no.safetensors").exists()


def test_with_a_models_name_the_keys_are_timms_and_what_does_not_fit_is_refused(dtem, checkpoint, tmp_path):
    path, state = checkpoint
    out = tmp_path / "timm.safetensors"
    said = dtem("convert", path, "--model", NAME, "--out", out)
    assert f"{NAME}: took 150 tensors" in said
    assert all(torch.equal(value, state[key]) for key, value in load_file(out).items())
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "timm": NAME, "grid": "14x14"}
    other = tmp_path / "other.safetensors"
    said = dtem("convert", path, "--model", "vit_small_patch16_224", "--out", other, code=2)
    assert "the weights have no head.weight of shape [7, 384]" in said
    assert not other.exists()


def test_what_is_written_is_for_all_that_the_umask_lets_read(dtem, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "x.safetensors"
    dtem("convert", checkpoint[0], "--out", out)
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert "does not end in .safetensors" in dtem("convert", checkpoint[0], "--out", "x.pth", code=2)


def test_a_run_is_converted_too(dtem, trained, tmp_path):
    out = tmp_path / "run.safetensors"
    dtem("convert", trained, "--out", out)
    averaged, last = load_file(out), tmp_path / "last.safetensors"
    dtem("convert", trained, "--prefer", "model", "--out", last)
    assert averaged.keys() == load_file(last).keys()
    assert not torch.equal(averaged["tasks.digits.head.bias"], load_file(last)["tasks.digits.head.bias"])
