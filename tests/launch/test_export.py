import importlib.util
import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from launch.programs import Program
from launch.restore import build, read_run

LACKS_ONNX = importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxscript") is None


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32)


def test_timm_takes_the_weights_and_gives_the_unmerged_logits(trained, dtem, tmp_path, images):
    dtem("export", trained, "--to", tmp_path)
    weights, card = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "model.json").read_text())
    architecture = card["architecture"]
    theirs = timm.create_model(architecture.pop("timm"), num_classes=card["head"]["num_classes"], **architecture).eval()
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not missing and unexpected and all(".metric." in name for name in unexpected)
    ours = build(read_run(trained))
    ours.backbone.set_reduction(0)
    torch.testing.assert_close(Program(ours, "digits")(images), theirs(images))


@pytest.mark.parametrize("policy", ["none", "tome", "dtem"])
def test_an_exported_program_gives_our_logits_for_any_batch(trained, dtem, tmp_path, images, policy):
    reduction = [] if policy == "none" else ["--reduction", "(3,-0.5)"]
    dtem("export", trained, "--to", tmp_path, "--format", "pt2", "--policy", policy, *reduction)
    program = torch.export.load(tmp_path / "model.pt2").module()
    ours = build(read_run(trained), policy)
    ours.backbone.set_reduction((3, -0.5) if reduction else 0)
    for batch in (1, 2, 5):
        with torch.no_grad():
            torch.testing.assert_close(program(images[:batch]), Program(ours, "digits")(images[:batch]))
    assert json.loads((tmp_path / "model.json").read_text())["merging"]["policy"] == policy


def test_a_segmentation_program_gives_unmerged_logits(segmenter, dtem, tmp_path, images):
    dtem("export", segmenter, "--to", tmp_path, "--format", "pt2", "--reduction", "3")
    program = torch.export.load(tmp_path / "model.pt2").module()
    ours = build(read_run(segmenter))
    ours.backbone.set_reduction(3)
    with torch.no_grad():
        logits = program(images)
        torch.testing.assert_close(logits, Program(ours, "scenes")(images))
    assert logits.shape == (5, 11, 4, 4)


@pytest.mark.skipif(not LACKS_ONNX, reason="onnx is installed")
def test_onnx_says_what_to_install(trained, dtem, tmp_path):
    assert "pip install onnx" in dtem("export", trained, "--to", tmp_path, "--format", "onnx", code=2)


@pytest.mark.skipif(LACKS_ONNX, reason="needs onnx and onnxscript")
def test_onnx_is_written(trained, dtem, tmp_path):
    dtem("export", trained, "--to", tmp_path, "--format", "onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 1000


def test_a_task_that_is_not_there_is_refused(trained, dtem, tmp_path):
    assert "give --task, one of digits" in dtem("export", trained, "--to", tmp_path, "--task", "cats", code=2)
