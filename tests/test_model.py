"""Starting weights: what they lack is said, and refused where it would stay random. Tasks: each its own
weight and reduction."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from tinyrun import tiny_plain, tiny_tasks_plain

import tasks  # noqa: F401 - fills the registry
from pipeline.backbone.build import create_vit
from pipeline.backbone.macs import count_macs
from pipeline.balancing import BALANCING
from pipeline.config.load import from_plain
from pipeline.data.targets import ClassificationTargets
from pipeline.errors import CheckpointError
from pipeline.interfaces import Batch
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


@pytest.fixture
def classifier_of_1000(tmp_path):
    """A timm classifier's weights, of the size that the configs here build."""
    backbone = tiny_plain(tmp_path, tmp_path / "run")["backbone"]
    vit = create_vit(backbone["name"], num_classes=1000, img_size=32, timm_options=backbone["options"])
    save_file(vit.state_dict(), path := tmp_path / "classifier.safetensors")
    return path


@pytest.mark.parametrize("mode", ["joint", "end_to_end", "backbone", "heads"])
def test_a_pretrained_classifier_starts_training_on_another_number_of_classes(
    tmp_path, classifier_of_1000, mode, caplog
):
    with caplog.at_level(logging.INFO):
        model = build_model(config_with(tmp_path, classifier_of_1000, mode))
    assert (
        "tasks.digits.head.weight is drawn anew: (1000, 24) in the checkpoint and (10, 24) in the model"
        in caplog.text
    )
    assert torch.equal(model.backbone.norm.weight, load_file(classifier_of_1000)["norm.weight"])


def test_so_do_timms_own_weights(tmp_path, monkeypatch, caplog):
    """Without the download."""
    plain = tiny_plain(tmp_path, tmp_path / "run", backbone={"pretrained": True})
    monkeypatch.setattr(
        "pipeline.start_weights.create_vit",
        lambda name, *, pretrained, **options: create_vit(name, **options),
    )
    with caplog.at_level(logging.INFO):
        build_model(from_plain(plain))
    assert (
        "tasks.digits.head.weight is drawn anew: (1000, 24) in the checkpoint and (10, 24) in the model"
        in caplog.text
    )


def test_a_head_drawn_anew_is_not_frozen(tmp_path, classifier_of_1000):
    with pytest.raises(
        CheckpointError,
        match=r"has no tasks\.digits\.head\.weight for this number of classes: it is \(1000, 24\)",
    ):
        build_model(config_with(tmp_path, classifier_of_1000, "modular"))


@pytest.mark.parametrize("mode", ["modular", "joint", "end_to_end", "backbone", "heads"])
@pytest.mark.parametrize("kept", ["cls_token", "head.", "pos_embed"])
def test_weights_that_leave_most_of_the_backbone_random_are_refused_in_every_mode(
    tmp_path, classifier_of_1000, mode, kept
):
    state = load_file(classifier_of_1000)
    strange = {name if name.startswith(kept) else f"my.{name}": tensor for name, tensor in state.items()}
    save_file(strange, path := tmp_path / "my.safetensors")
    with pytest.raises(CheckpointError, match="of the backbone's numbers|no key of the checkpoint fits"):
        build_model(config_with(tmp_path, path, mode))


def test_metric_embeddings_of_one_file_join_the_backbone_of_timm(tmp_path, monkeypatch):
    plain = tiny_plain(tmp_path, tmp_path / "run", train={"mode": "heads"}, backbone={"pretrained": True})
    taught = build_model(from_plain(tiny_plain(tmp_path, tmp_path / "run"))).backbone
    metric = {name: tensor for name, tensor in taught.state_dict().items() if ".metric." in name}
    save_file(metric, tmp_path / "metric.safetensors")
    plain["backbone"]["weights"] = str(tmp_path / "metric.safetensors")
    monkeypatch.setattr(
        "pipeline.start_weights.create_vit",
        lambda name, *, pretrained, **options: create_vit(name, **options),
    )
    model = build_model(from_plain(plain))
    assert torch.equal(
        model.backbone.state_dict()["blocks.1.metric.weight"], metric["blocks.1.metric.weight"]
    )


def model_of(tmp_path, **sections):
    return build_model(from_plain(tiny_tasks_plain(tmp_path, tmp_path / "run", **sections)))


def digits_batch(task="digits"):
    return Batch(task, torch.randn(3, 3, 32, 32), ClassificationTargets(torch.arange(3)), ("a", "b", "c"))


@pytest.mark.parametrize("kind", BALANCING.names())
def test_the_loss_is_weighed_and_the_logs_are_not(tmp_path, kind):
    model = model_of(tmp_path, balancing={"type": kind}, tasks={"digits": {"weight": 0.25}}).train()
    output = model(digits_batch())
    torch.testing.assert_close(output.loss, output.unweighed * 0.25)
    total, count = output.logs["loss"]
    assert count == 3 and not output.unweighed.requires_grad and output.loss.requires_grad
    assert ("weight" in output.logs) == (kind != "fixed")
    assert all(not total.requires_grad for total, _ in output.logs.values())


def test_a_task_has_its_own_reduction_or_that_of_the_run(tmp_path):
    own = {"masks": {"merging": {"reduction": 3}}, "captions": {"merging": {"reduction": 0}}}
    model, x = model_of(tmp_path, merging={"reduction": 2}, tasks=own).eval(), torch.randn(2, 3, 32, 32)
    left = {task: model.encode(task, x).final.num_active for task in model.tasks}
    assert left == {"digits": 17 - 6, "captions": 17, "masks": 17 - 9}
    assert {task: model.schedule(task, (4, 4)) for task in left} == {
        "digits": (2, 2, 2),
        "captions": (0, 0, 0),
        "masks": (3, 3, 3),
    }
    for task in left:
        assert model.encode(task, x, reduction=1).final.num_active == 17 - 3, (
            "what is asked for goes before what is set"
        )
        assert model.encoder(task)(x).final.num_active == left[task]
    model.set_reduction("digits", 4)
    assert {task: model.encode(task, x).final.num_active for task in left} == left | {"digits": 17 - 12}


def test_a_target_is_solved_for_the_tasks_own_crop(tmp_path):
    own = {"masks": {"merging": {"target_macs": 0.7}}}
    plain = tiny_tasks_plain(tmp_path, tmp_path / "run", merging={"reduction": 0}, tasks=own)
    plain["tasks"]["masks"]["data"] |= {"img_size": 64}
    model = build_model(from_plain(plain))
    large = (8, 8)
    whole, merged = (
        count_macs(model.backbone, large, reduction).total for reduction in (0, model.reduction_of("masks"))
    )
    assert 0.66 < merged / whole <= 0.7
    assert sum(model.schedule("digits", (4, 4))) == 0 < sum(model.schedule("masks", large))


def test_a_frozen_task_is_in_the_model_and_weighs_nothing(tmp_path):
    plain = tiny_tasks_plain(tmp_path, tmp_path / "run", balancing={"type": "uncertainty"})
    plain["tasks"]["masks"] |= {"frozen": True}
    model = build_model(from_plain(plain))
    assert set(model.tasks) == {"digits", "captions", "masks"} and set(model.balancing.names) == {
        "digits",
        "captions",
    }
