import importlib
import json
import os
from dataclasses import asdict, replace

import pytest
import timm
import torch
from choices import clear_rows
from fake_hub import running
from safetensors.torch import load_file
from timm.models import save_for_hf

from launch.exported.formats import Program
from launch.saved.reductions import parse_reduction
from launch.saved.run import build, read_run
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.preprocessing import preprocessing_of
from pipeline.config.schema import BackboneConfig
from pipeline.errors import ConfigError


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32)


def test_timm_takes_the_weights_and_gives_the_unmerged_logits(trained, dtem, tmp_path, images):
    dtem("export", trained, "--out", tmp_path)
    weights, card = (
        load_file(tmp_path / "model.safetensors"),
        json.loads((tmp_path / "model.json").read_text()),
    )
    architecture = card["architecture"]
    theirs = timm.create_model(
        architecture.pop("timm"), num_classes=card["head"]["num_classes"], **architecture
    ).eval()
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not missing and unexpected and all(".metric." in name for name in unexpected)
    ours = build(read_run(trained))
    ours.backbone.set_reduction(0)
    torch.testing.assert_close(Program(ours, "digits")(images), theirs(images))


@pytest.mark.slow
def test_an_export_of_another_kind_leaves_no_config_of_the_one_before(trained, dtem, tmp_path):
    dtem("export", trained, "--out", tmp_path)
    assert (tmp_path / "config.json").is_file()
    dtem("export", trained, "--out", tmp_path, "--format", "pt2")
    assert not (tmp_path / "config.json").exists() and (tmp_path / "model.json").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("mine")
    dtem("export", trained, "--out", tmp_path / "other", "--format", "pt2")
    assert (tmp_path / "other" / "config.json").read_text() == "mine"


@pytest.mark.parametrize("size", [32, 48])
def test_timm_builds_the_unmerged_model_from_the_folder(trained, dtem, tmp_path, size):
    """With the pixels, and the way to them, that the run has; 48 is another size than the position
    embedding's."""
    words = ("--policy", "none", "--cfg-options", f"tasks.digits.data.img_size={size}")
    dtem("export", trained, "--out", tmp_path, *words)
    assert not json.loads((tmp_path / "config.json").read_text())["architecture"].endswith("_dtem")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    run = read_run(trained)
    ours, data = build(run), run.config.tasks["digits"].data
    ours.backbone.set_reduction(0)
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), Program(ours, "digits")(images), atol=1e-5, rtol=1e-5)
    wanted, given = data.augment.preprocessing, timm.data.resolve_model_data_config(theirs)
    assert list(given["input_size"]) == [3, size, size]
    assert {name: given[name] for name in asdict(wanted)} == json.loads(json.dumps(asdict(wanted)))


@pytest.mark.parametrize(
    ("policy", "reduction"), [("dtem", "3"), ("dtem", "(3,-0.5)"), ("tome", "[3,0,2]"), ("dtem", "0.8")]
)
def test_where_dtem_is_imported_timm_builds_the_model_that_merges(trained, dtem, tmp_path, policy, reduction):
    """On images whose choices are clear, as its sums need not be ours."""
    importlib.import_module("dtem")
    dtem("export", trained, "--out", tmp_path, "--policy", policy, "--reduction", reduction)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    ours = build(read_run(trained), policy)
    ours.backbone.set_reduction(parse_reduction(reduction))
    eager = Program(ours, "digits")
    images = clear_rows(eager, torch.randn(60, 3, 32, 32), 5)
    with torch.no_grad():
        merged = theirs(images)
        torch.testing.assert_close(merged, eager(images))
        theirs.reduction = 0
        assert not torch.equal(merged, theirs(images))


@pytest.mark.parametrize("policy", ["none", "dtem"])
@pytest.mark.parametrize("size", [32, 48])
def test_the_configuration_has_the_keys_of_timms_own(trained, dtem, tmp_path, policy, size):
    """And the values, of a model that timm built from it and saved itself."""
    importlib.import_module("dtem")
    words = ("--policy", policy, "--cfg-options", f"tasks.digits.data.img_size={size}")
    dtem("export", trained, "--out", tmp_path, *words)
    ours = json.loads((tmp_path / "config.json").read_text())
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ours["label_names"]
    save_for_hf(
        model, str(tmp_path / "theirs"), {"label_names": ours["label_names"]}, safe_serialization=True
    )
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    # what timm read at the top it repeats below
    assert theirs["pretrained_cfg"].pop("label_names") == ours["label_names"]
    assert ours == theirs


def test_an_export_on_the_hub_is_timms(trained, dtem, tmp_path, images):
    dtem("export", trained, "--out", tmp_path / "out", "--policy", "none")
    with running(tmp_path / "cache") as hub:
        hub.add_folder("me/digits", tmp_path / "out")
        theirs = timm.create_model("hf-hub:me/digits", pretrained=True).eval()
    local = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(theirs(images), local(images))
    assert theirs.pretrained_cfg["label_names"] == read_run(trained).classes("digits")


def test_the_card_says_how_pixels_reach_the_model_and_what_outputs_are(trained, segmenter, dtem, tmp_path):
    dtem("export", trained, "--out", tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["classes"] == read_run(trained).classes("digits") and card["classes"][:2] == ["zero", "one"]
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == card["classes"]
    assert card["input"]["interpolation"] == "bicubic" and "floor(side / crop_pct)" in card["input"]["resize"]
    dtem("export", segmenter, "--out", tmp_path / "masks")
    card = json.loads((tmp_path / "masks" / "model.json").read_text())
    assert (
        card["input"]["resize"] == "as stored, no crop" and not (tmp_path / "masks" / "config.json").exists()
    )


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640)])
@pytest.mark.parametrize("form", ["safetensors", "pt2"])
def test_others_can_read_an_export_as_the_umask_has_it(trained, dtem, tmp_path, form, umask, mode):
    before = os.umask(umask)
    try:
        dtem("export", trained, "--out", tmp_path / "out", "--format", form)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert f"model.{form}" in modes and set(modes.values()) == {mode}


def test_an_export_writes_into_no_run_and_leaves_no_empty_folder(trained, captioner, dtem, tmp_path):
    before = (trained / "config.json").read_bytes()
    assert "is the folder of a run" in dtem("export", trained, "--out", trained, code=2)
    assert (trained / "config.json").read_bytes() == before and not (trained / "model.json").exists()
    dtem("export", captioner, "--out", tmp_path / "no", "--format", "pt2", code=2)
    assert not (tmp_path / "no").exists()


def test_an_export_says_the_grid_of_its_positions(trained, dtem, tmp_path):
    dtem("export", trained, "--out", tmp_path)
    for place in (tmp_path / "model.safetensors", tmp_path, trained):
        assert read_state_dict(place).grid == (4, 4)


@pytest.mark.parametrize("name", ["model.safetensors", "."])
def test_a_run_that_starts_from_an_export_sees_its_pixels(trained, dtem, tmp_path, name):
    dtem(
        "export", trained, "--out", tmp_path, "--cfg-options", "tasks.digits.data.augment.mean=(0.1,0.2,0.3)"
    )
    backbone = BackboneConfig(name="vit_tiny_patch16_224", weights=str(tmp_path / name))
    own = read_run(trained).config.tasks["digits"].data.augment.preprocessing
    assert preprocessing_of(backbone) == (replace(own, mean=(0.1, 0.2, 0.3)), backbone.weights)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"input": card["input"] | {"std": "x"}}))
    with pytest.raises(ConfigError, match=r"model.json: 1 mistake\n  std: expected"):
        preprocessing_of(backbone)


@pytest.mark.parametrize("policy", ["none", "tome", "dtem"])
def test_an_exported_program_gives_our_logits_for_any_batch(trained, dtem, tmp_path, policy):
    """Of images whose choices are clear, as its kernels need not be ours."""
    reduction = [] if policy == "none" else ["--reduction", "(3,-0.5)"]
    dtem("export", trained, "--out", tmp_path, "--format", "pt2", "--policy", policy, *reduction)
    program = torch.export.load(tmp_path / "model.pt2").module()
    ours = build(read_run(trained), policy)
    ours.backbone.set_reduction((3, -0.5) if reduction else 0)
    eager = Program(ours, "digits")
    images = clear_rows(eager, torch.randn(60, 3, 32, 32), 5)
    for batch in (1, 2, 5):
        with torch.no_grad():
            torch.testing.assert_close(program(images[:batch]), eager(images[:batch]))
    assert json.loads((tmp_path / "model.json").read_text())["merging"]["policy"] == policy


def test_a_segmentation_program_gives_unmerged_logits(segmenter, dtem, tmp_path):
    dtem("export", segmenter, "--out", tmp_path, "--format", "pt2", "--reduction", "3")
    program = torch.export.load(tmp_path / "model.pt2").module()
    ours = build(read_run(segmenter))
    ours.backbone.set_reduction(3)
    eager = Program(ours, "scenes")
    images = clear_rows(eager, torch.randn(60, 3, 32, 32), 5)
    with torch.no_grad():
        logits = program(images)
        torch.testing.assert_close(logits, eager(images))
    assert logits.shape == (5, 11, 4, 4)


def test_an_onnx_program_gives_our_logits_in_onnxruntime(trained, dtem, tmp_path):
    """Of images whose choices are clear, as its kernels are not ours."""
    onnxruntime = pytest.importorskip("onnxruntime")
    dtem("export", trained, "--out", tmp_path, "--format", "onnx", "--reduction", "3")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    ours = build(read_run(trained))
    ours.backbone.set_reduction(3)
    eager = Program(ours, "digits")
    images = clear_rows(eager, torch.randn(60, 3, 32, 32), 5)
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), eager(images), atol=1e-4, rtol=1e-4)


def test_a_task_that_is_not_there_is_refused(trained, dtem, tmp_path):
    assert "give --task, one of digits" in dtem(
        "export", trained, "--out", tmp_path, "--task", "cats", code=2
    )
