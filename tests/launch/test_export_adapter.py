"""The merge adapter of a run that was really trained, with the curve of its sweep."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from launch.exported.adapter import adapter_of_run
from launch.saved.run import build, read_run
from pipeline.backbone.adapters.digest import base_digest
from pipeline.backbone.adapters.public import load_adapter
from pipeline.version import VERSION


@pytest.fixture(scope="module")
def swept(trained, tmp_path_factory):
    """A copy of the run with a sweep in its folder."""
    from launch import cli

    run = shutil.copytree(trained, tmp_path_factory.mktemp("swept") / "run")
    words = ["sweep", run, "--policy", "tome,dtem_untrained,dtem", "--macs", "0.8", "--rounds", 0]
    assert cli.main([str(word) for word in words]) == 0
    return run


def test_the_adapter_of_a_run_holds_its_embeddings_recipe_and_curve(swept, dtem, tmp_path):
    said = dtem(
        "export", swept, "--out", tmp_path, "--adapter", "--license", "apache-2.0", "--reduction", "4"
    )
    adapter, run = load_adapter(tmp_path), read_run(swept)
    config, model = adapter.config, build(run)
    assert "adapter.safetensors" in said and str(run) in said
    for number, block in enumerate(model.backbone.blocks):
        assert torch.equal(adapter.tensors[f"blocks.{number}.metric.weight"], block.metric.weight)
    assert config.base.digest == base_digest(model.backbone.blocks) and config.base.name is None
    assert config.base.architecture == "vit_tiny_patch16_224" and config.base.options["embed_dim"] == 24
    assert (
        config.merging.policy == "dtem" and config.merging.reduction == 4 and config.license == "apache-2.0"
    )
    assert config.recipe is not None and config.recipe.steps == 4 and config.recipe.mode == "joint"
    assert len(config.recipe.data_digest or "") == 12 and config.made_with["torch"] and VERSION
    (curve,) = config.curves
    rows = json.loads((swept / "sweep" / "sweep.json").read_text())[0]["points"]
    assert (curve.task, curve.metric, len(curve.points)) == ("digits", "top1", 2)
    assert curve.points[0].scores.keys() == {"none"} and curve.points[0].macs == 1
    for point in curve.points[1:]:
        assert point.scores.keys() == {"tome", "dtem_untrained", "dtem"}
        (row,) = [row for row in rows if row["policy"] == "dtem" and row["macs_ratio"] == point.macs]
        assert point.reduction == row["schedule"] and point.scores["dtem"] == row["scores"]["top1"][0]
    card = (tmp_path / "README.md").read_text()
    assert "license: apache-2.0" in card and "dtem\\_untrained" in card and str(tmp_path) not in card


def test_the_adapter_says_no_path_of_the_machine(swept, dtem, tmp_path):
    dtem("export", swept, "--out", tmp_path / "out", "--adapter")
    for name in ("adapter_config.json", "README.md"):
        text = (tmp_path / "out" / name).read_text()
        assert str(swept) not in text and str(tmp_path) not in text and "/tmp" not in text


def test_a_sweep_of_another_checkpoint_gives_no_curve(swept, dtem, tmp_path):
    run = shutil.copytree(swept, tmp_path / "run")
    path = run / "sweep" / "sweep.json"
    content = json.loads(path.read_text())
    content[0]["conditions"]["digests"] = ["0" * 64]
    path.write_text(json.dumps(content))
    dtem("export", run, "--out", tmp_path / "out", "--adapter")
    assert load_adapter(tmp_path / "out").config.curves == []


@pytest.mark.parametrize("content", ["", "[1]", '[{"task": "digits"}]', "{}x", "[" * 100_000])
def test_a_damaged_sweep_is_refused(swept, dtem, tmp_path, content):
    run = shutil.copytree(swept, tmp_path / "run")
    (run / "sweep" / "sweep.json").write_text(content)
    assert "remove it, or sweep again" in dtem("export", run, "--out", tmp_path / "out", "--adapter", code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("backbone", "mode", "name"),
    [
        (dict(pretrained=True), "modular", "timm/deit_tiny_patch16_224.fb_in1k"),
        (dict(pretrained=True), "heads", "timm/deit_tiny_patch16_224.fb_in1k"),
        (dict(pretrained=True), "joint", None),
        (dict(pretrained=True, weights="x.pth"), "modular", None),
        (dict(), "modular", None),
    ],
)
def test_the_base_is_named_where_the_run_left_timms_weights_as_they_were(trained, backbone, mode, name):
    run = read_run(trained)
    backbone = replace(run.config.backbone, name="deit_tiny_patch16_224", **backbone)
    train = replace(run.config.train, mode=mode)
    changed = replace(run, config=replace(run.config, backbone=backbone, train=train))
    assert adapter_of_run(changed, build(run), "digits").config.base.name == name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--adapter", "--policy", "tome"), "run's own policy learned"),
        (("--adapter", "--policy", "dtem_untrained"), "run's own policy learned"),
        (("--license", "mit"), "give --adapter"),
        (("--base-model", "timm/x"), "give --adapter"),
    ],
)
def test_what_an_adapter_cannot_be_is_refused(trained, dtem, tmp_path, words, said):
    assert said in dtem("export", trained, "--out", tmp_path / "out", *words, code=2)
    assert not (tmp_path / "out").exists()


def test_a_run_without_an_embedding_has_no_adapter(trained, dtem, tmp_path):
    words = ("--adapter", "--cfg-options", "merging.policy=tome")
    assert "no metric embedding" in dtem("export", trained, "--out", tmp_path / "out", *words, code=2)
