"""`dtem sweep --schedule learned`: rates that are learned on other images than those that are reported."""

import json

import pytest
import torch
from shardkit import samples, write_tar

from launch.measure import learning
from launch.measure.learning import LearnedSchedules, loss_of
from launch.measure.planning import Planned
from launch.measure.solving import Solving, solving_batches, unmerged_predictions
from launch.saved.run import build, read_run
from pipeline.backbone.macs import count_macs

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(learning, "STEPS", 4)


def images_of(run, model):
    (task,) = run.config.tasks
    return solving_batches(task, run.config.tasks[task].data, run.classes(task), model, Solving(images=8))


def test_a_sweep_has_what_was_learned(trained, dtem, tmp_path):
    out = ("--solve-images", 8, "--rounds", 0, "--out", tmp_path)
    policies = ("--policy", "tome,diffrate,dtem")
    said = dtem("sweep", trained, *policies, "--schedule", "even,learned", "--macs", "0.8", *out)
    (found,) = json.loads((tmp_path / "sweep.json").read_text())
    rows = found["points"][1:]
    expected = [(policy, kind) for policy in ("tome", "diffrate", "dtem") for kind in ("even", "learned")]
    assert [(row["policy"], row["kind"]) for row in rows] == expected
    assert all(row["encoder_macs_ratio"] <= 0.8 for row in rows)
    assert [len(row["options"].get("pruned", [])) for row in rows] == [0, 0, 0, 3, 0, 0]
    assert "learned on 8 images of" in said and "with merging.options.pruned=[" in said
    assert found["conditions"]["solved_on"]["images"] == 8


def test_each_task_has_a_loss_with_a_gradient(trained, captioner, segmenter):
    for folder in (trained, captioner, segmenter):
        run = read_run(folder)
        model = build(run, "tome")
        batches = images_of(run, model)
        assert loss_of(model, unmerged_predictions(model, batches, CPU))([0, 0, 0]).item() == 0
        learned = LearnedSchedules(model, batches, "tome", CPU)
        schedule = learned(model.backbone, 0.8, model.backbone.grid_of(batches[0].images))
        assert len(schedule) == model.backbone.depth and any(schedule)
        assert learned.options(0.8) == {}


def test_another_grid_has_the_same_shares_and_a_point_has_its_options(trained):
    run = read_run(trained)
    model = build(run, "diffrate")
    learned = LearnedSchedules(model, images_of(run, model), "diffrate", CPU)
    schedule = learned(model.backbone, 0.8, (8, 6))
    ratio = count_macs(model.backbone, (8, 6), schedule).total / count_macs(model.backbone, (8, 6), 0).total
    assert 0.7 < ratio <= 0.8
    options = learned.options(0.8)
    other = Planned("diffrate", 0.8, "learned", schedule, options).on(model)
    assert other is not model and model.backbone.policy.options == {}
    assert all(block.policy.options == options for block in other.backbone.blocks)
    weights = dict(other.named_parameters())
    assert all(weights[name] is own for name, own in model.named_parameters())


def test_a_published_model_learns_on_pictures_that_are_not_reported(dtem, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_tar(folder / "x.tar", [(name, data) for name, data in samples("v", 24) if name.endswith("png")])
    model = ["timm:test_vit", "--no-pretrained", "--img-size", 64, "--data", folder]
    options = ["--policy", "tome,diffrate", "--schedule", "learned", "--macs", "0.8", "--solve-images", 8]
    dtem("sweep", *model, *options, "--rounds", 0, "--out", tmp_path)
    (found,) = json.loads((tmp_path / "sweep.json").read_text())
    assert found["conditions"]["samples"] == 16
    rows = found["points"][1:]
    assert [row["policy"] for row in rows] == ["tome", "diffrate"]
    assert all(row["kind"] == "learned" and row["macs_ratio"] <= 0.8 for row in rows)
    assert rows[1]["options"]["pruned"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "tome", "--schedule", "learned", "--merged", "0.5"], "give --macs in place of"),
        (["--policy", "tome", "--schedule", "learned", "--split", "train"], "another split than train"),
        (["--policy", "atc", "--schedule", "learned"], "no policy can be run at any of the asked points"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(trained, dtem, tmp_path, options, said):
    assert said in dtem("sweep", trained, *options, "--out", tmp_path, code=2)


def test_a_reduction_is_not_learned_by_other_commands(trained, dtem):
    said = dtem("evaluate", trained, "--reduction", "learned", code=2)
    assert "`dtem sweep --schedule learned` prints it" in said
