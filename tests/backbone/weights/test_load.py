"""Weights in three styles of keys, and what is refused."""

import pickle
from pathlib import Path

import pytest
import torch
from names import owner_of
from safetensors.torch import save_file
from timm.models import load_state_dict as timm_reads
from tiny import IMG, SIZES, images, tiny_vit

from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.load import load_weights
from pipeline.balancing import BALANCING
from pipeline.errors import CheckpointError
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask

NAME = "deit_tiny_patch16_224"


def timm_vit(**options):
    return create_vit(
        NAME, num_classes=10, img_size=options.pop("img_size", IMG), timm_options=SIZES | options
    )


def classifier(variant="dtem", num_classes=10, **arguments):
    backbone = tiny_vit(variant, **arguments)
    return MultiTaskModel(
        backbone,
        {"animals": ClassificationTask(backbone, num_classes=num_classes)},
        OBJECTIVES.build("supervised"),
    )


def release_style(state, dim=48, metric_dim=16):
    """As the authors' release saves: qkv and metric apart, and once more side by side."""
    given = {}
    for key, value in state.items():
        if ".attn.qkv." not in key:
            given[key] = value
            continue
        block, _, kind = key.partition(".attn.qkv.")
        metric = torch.randn(metric_dim, dim) if kind == "weight" else torch.randn(metric_dim)
        given |= {
            f"{block}.attn.qkv.qkv_layer.{kind}": value,
            f"{block}.attn.qkv.metric_layer.{kind}": metric,
            f"{block}.attn.qkv.{kind}": torch.full((len(value) + metric_dim, *value.shape[1:]), torch.nan),
        }
    return given


def test_timm_keys_leave_only_the_metric_embeddings_as_they_were():
    vit, model = timm_vit(), tiny_vit("dtem", seed=3)
    report = load_weights(model, vit.state_dict())
    assert set(report.taken) == set(vit.state_dict()) - {"head.weight", "head.bias"}
    assert set(report.missing) == {name for name in model.state_dict() if ".metric." in name}
    assert set(report.left) == {"head.weight", "head.bias"}
    for key in report.taken:
        assert torch.equal(model.state_dict()[key], vit.state_dict()[key])
    assert "took" in str(report) and "head.weight" in str(report)


def test_weights_of_a_deeper_model_are_said_to_be(caplog):
    depth = SIZES["depth"]
    load_weights(tiny_vit("dtem"), timm_vit().state_dict())
    assert not caplog.text
    load_weights(tiny_vit("dtem"), timm_vit(depth=depth + 2).state_dict())
    assert f"the weights have 2 blocks more than the model, which has {depth}" in caplog.text


def test_a_timm_classifier_finds_the_head_of_the_task():
    vit, model = timm_vit(), classifier()
    report = load_weights(model, vit.state_dict())
    assert not report.left and all(".metric." in name for name in report.missing)
    with torch.no_grad():
        logits = model.tasks["animals"].logits(model.eval().backbone(images(), reduction=0))
        torch.testing.assert_close(logits, vit.eval()(images()), atol=1e-5, rtol=1e-5)


def several(heads, seed=0, balancing=None):
    """heads: number of classes of each task."""
    backbone = tiny_vit("dtem", seed=seed)
    tasks = {name: ClassificationTask(backbone, num_classes=classes) for name, classes in heads.items()}
    balance = BALANCING.build(balancing, dict.fromkeys(heads, 1.0)) if balancing else None
    return MultiTaskModel(backbone, tasks, OBJECTIVES.build("supervised"), balancing=balance)


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_timm_classifier_goes_to_all_heads_of_its_shapes():
    vit, model = timm_vit(), several({"animals": 10, "plants": 7, "pets": 10})
    own = copied(model)
    report = load_weights(model, vit.state_dict())
    assert {name for name in report.missing if ".metric." not in name} == {
        "tasks.plants.head.weight",
        "tasks.plants.head.bias",
    }
    for kind in ("weight", "bias"):
        given = vit.state_dict()[f"head.{kind}"]
        assert all(
            torch.equal(model.state_dict()[f"tasks.{task}.head.{kind}"], given)
            for task in ("animals", "pets")
        )
        assert torch.equal(model.state_dict()[f"tasks.plants.head.{kind}"], own[f"tasks.plants.head.{kind}"])


@pytest.mark.parametrize(
    "heads",
    [("animals", "plants"), ("plants", "animals"), ("animals", "pets"), ("pets", "animals", "plants")],
)
def test_heads_are_matched_by_the_name_of_their_task(heads):
    """Their inner names and shapes are the same."""
    old, new = several({"animals": 10, "plants": 10}, seed=3), several(dict.fromkeys(heads, 10), seed=4)
    own = copied(new)
    report = load_weights(new, old.state_dict())
    known = {"animals", "plants"} & set(heads)
    assert {owner_of(name) for name in report.left} == {"animals", "plants"} - known
    assert {owner_of(name) for name in report.missing} == set(heads) - known
    for name, tensor in new.state_dict().items():
        assert torch.equal(
            tensor, own[name] if owner_of(name) in set(heads) - known else old.state_dict()[name]
        )


def test_a_new_task_beside_the_only_old_one_keeps_its_own_start():
    old, new = several({"animals": 10}, seed=3), several({"animals": 10, "pets": 10}, seed=4)
    own = copied(new)
    report = load_weights(new, old.state_dict())
    assert {owner_of(name) for name in report.missing} == {"pets"} and not report.left
    assert all(torch.equal(new.state_dict()[name], own[name]) for name in report.missing)


def test_one_task_takes_its_own_head_of_several():
    old, new = several({"animals": 10, "plants": 7}, seed=3), several({"plants": 7}, seed=4)
    report = load_weights(new, old.state_dict())
    assert not report.missing and {owner_of(name) for name in report.left} == {"animals"}
    assert torch.equal(new.tasks["plants"].head.weight, old.tasks["plants"].head.weight)


def test_the_only_task_takes_the_head_of_the_only_other_whatever_its_name():
    old, new = several({"animals": 10}, seed=3), several({"pets": 10}, seed=4)
    assert not load_weights(new, old.state_dict()).missing
    assert torch.equal(new.tasks["pets"].head.weight, old.tasks["animals"].head.weight)


@pytest.mark.parametrize("balancing", BALANCING.names())
@pytest.mark.parametrize(
    "heads", [{"animals": 10}, {"animals": 10, "plants": 7}, {"animals": 10, "plants": 7, "pets": 3}]
)
def test_how_losses_were_weighed_stays_with_the_run_that_did(balancing, heads):
    """Also where the tasks are the same: how far they have come since the other run's first step is not this
    run's matter."""
    old, new = several({"animals": 10, "plants": 7}, 3, balancing), several(heads, 4, balancing)
    with torch.no_grad():
        for tensor in old.balancing.state_dict(keep_vars=True).values():
            tensor.add_(1)
    own = copied(new.balancing)
    load_weights(new, old.state_dict())
    assert all(torch.equal(tensor, own[name]) for name, tensor in new.balancing.state_dict().items())


def test_our_own_keys_go_around_in_full():
    model, other = classifier(seed=3), classifier(seed=4)
    report = load_weights(other, model.state_dict())
    assert not report.missing and not report.left
    assert all(torch.equal(other.state_dict()[key], value) for key, value in model.state_dict().items())
    backbone = tiny_vit("dtem", seed=5)
    assert not load_weights(backbone, model.state_dict()).missing
    assert torch.equal(backbone.blocks[1].metric.weight, model.backbone.blocks[1].metric.weight)


@pytest.mark.parametrize(
    "wrapper", ["", "module.", "backbone.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_keys_of_the_release_bring_their_metric_layers(wrapper):
    given = release_style(timm_vit().state_dict())
    model = tiny_vit("dtem")
    report = load_weights(model, {wrapper + key: value for key, value in given.items()})
    assert not report.missing and set(report.left) == {"head.weight", "head.bias"}
    for i, block in enumerate(model.blocks):
        assert torch.equal(block.metric.weight, given[f"blocks.{i}.attn.qkv.metric_layer.weight"])
        assert torch.equal(block.attn.qkv.bias, given[f"blocks.{i}.attn.qkv.qkv_layer.bias"])


def test_keys_of_the_release_leave_their_metric_layers_where_nothing_takes_them():
    report = load_weights(tiny_vit("tome"), release_style(timm_vit().state_dict()))
    assert not report.missing
    assert {key for key in report.left if "metric" in key} == {
        f"blocks.{i}.metric.{kind}" for i in range(3) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("heads", [{"animals": 4}, {"animals": 4, "plants": 10}])
@pytest.mark.parametrize("keys", ["timm", "ours"])
def test_a_head_for_another_number_of_classes_is_drawn_anew_and_that_is_said(heads, keys):
    given = timm_vit() if keys == "timm" else several({"animals": 10}, seed=3)
    new = several(heads, seed=4)
    own = copied(new)
    report = load_weights(new, given.state_dict())
    redrawn = {"tasks.animals.head.weight", "tasks.animals.head.bias"}
    assert report.redrawn.keys() == redrawn <= set(report.missing)
    assert all(torch.equal(new.state_dict()[name], own[name]) for name in redrawn)
    assert (
        "tasks.animals.head.weight is drawn anew: (10, 48) in the checkpoint and (4, 48) in the model"
        in str(report)
    )
    theirs = given.backbone if keys == "ours" else given
    assert torch.equal(new.backbone.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight)
    if keys == "timm" and "plants" in heads:
        assert torch.equal(new.tasks["plants"].head.weight, given.head.weight)
        assert "the head of plants from a classifier" in str(report)


def test_a_head_that_differs_in_more_than_its_classes_is_another_architecture():
    given = several({"animals": 10}).state_dict() | {"tasks.animals.head.weight": torch.zeros(10, 96)}
    with pytest.raises(
        CheckpointError, match=r"'tasks.animals.head.weight' is \(10, 96\) in the checkpoint and \(10, 48\)"
    ):
        load_weights(several({"animals": 10}), given)
    with pytest.raises(CheckpointError, match="another architecture"):
        load_weights(several({"animals": 4}), given)


@pytest.mark.parametrize("stranger", ["blocks.", "mlp.", "attn.qkv."])
def test_keys_of_an_unknown_style_are_refused_even_where_some_fit_by_chance(stranger):
    state, model = timm_vit().state_dict(), tiny_vit("dtem")
    before = copied(model)
    with pytest.raises(CheckpointError, match=r"fill \d+% of the backbone's numbers, and not blocks.0"):
        load_weights(
            model, {name.replace(stranger, f"my_{stranger}"): value for name, value in state.items()}
        )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_metric_embeddings_alone_are_a_checkpoint_too():
    old, new = tiny_vit("dtem", seed=3), tiny_vit("dtem", seed=4)
    metric = {name: tensor for name, tensor in old.state_dict().items() if ".metric." in name}
    assert set(load_weights(new, metric).taken) == set(metric)


def test_another_shape_is_refused_by_name():
    wide = create_vit(NAME, num_classes=0, img_size=IMG, timm_options=SIZES | {"embed_dim": 96})
    with pytest.raises(
        CheckpointError, match=r"'cls_token' is \(1, 1, 96\) in the checkpoint and \(1, 1, 48\) in the model"
    ):
        load_weights(tiny_vit("dtem"), wide.state_dict())
    with pytest.raises(CheckpointError, match="no key of the checkpoint fits"):
        load_weights(tiny_vit("dtem"), {"conv1.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="no key of the checkpoint fits"):
        load_weights(tiny_vit("dtem"), {})


def test_a_refused_state_leaves_the_module_as_it_was():
    model = tiny_vit("dtem")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: value + 1 for key, value in before.items()} | {"norm.bias": torch.zeros(7)}
    with pytest.raises(CheckpointError, match="norm.bias"):
        load_weights(model, state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_position_embeddings_with_other_prefix_tokens_are_refused():
    with pytest.raises(CheckpointError, match="pos_embed"):
        load_weights(tiny_vit("tome", prefix="distilled"), tiny_vit("tome").state_dict())


@pytest.mark.parametrize("prefix", ["class token", "distilled", "registers", "no prefix, average pooling"])
def test_position_embeddings_of_another_grid_are_resampled(prefix):
    small, large = tiny_vit("tome", prefix=prefix), tiny_vit("tome", prefix=prefix, img_size=96)
    load_weights(large, small.state_dict())
    with torch.no_grad():
        resampled_before = large.eval()(images(2, 96), reduction=0).final.tokens
        resampled_inside = small.eval()(images(2, 96), reduction=0).final.tokens
    torch.testing.assert_close(resampled_before, resampled_inside)


def wide_vit(**options):
    """A grid of 8x18 patches, 144 as in a square of 12x12."""
    return tiny_vit("tome", seed=3, img_size=(64, 144), **options)


@pytest.mark.parametrize("size", [96, 64, (48, 192)])
def test_positions_of_a_grid_that_is_known_are_resampled_from_it(size, tmp_path):
    """96 pixels are 12x12 patches, as many as 8x18."""
    wide, new, pixels = (
        wide_vit(),
        tiny_vit("tome", img_size=size),
        size if isinstance(size, tuple) else (size, size),
    )
    save_file(wide.state_dict(), tmp_path / "exported.safetensors", metadata={"grid": "8x18"})
    for report in (
        load_weights(new, wide.state_dict(), grid=(8, 18)),
        load_weights(new, read_state_dict(tmp_path / "exported.safetensors")),
    ):
        assert report.grids == ((8, 18), new.grid) and "positions from a grid of 8x18 to" in str(report)
        given = torch.randn(2, 3, *pixels)
        with torch.no_grad():
            ours, theirs = (model.eval()(given, reduction=0).final.tokens for model in (new, wide))
        torch.testing.assert_close(ours, theirs)


def test_positions_that_could_be_of_two_grids_are_refused():
    with pytest.raises(CheckpointError, match="144 positions, which could be a grid of 12x12 or of 8x18"):
        load_weights(wide_vit(), tiny_vit("tome", img_size=96).state_dict())
    assert not load_weights(wide_vit(), wide_vit().state_dict(), grid=(8, 18)).missing
    assert load_weights(wide_vit(), tiny_vit("tome", img_size=96).state_dict(), grid=(12, 12)).grids == (
        (12, 12),
        (8, 18),
    )
    with pytest.raises(CheckpointError, match="pos_embed.*of another grid than a square one"):
        load_weights(tiny_vit("tome"), tiny_vit("tome", img_size=(64, 72)).state_dict())


class Hostile:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_file_that_carries_code_is_refused_and_the_code_does_not_run(tmp_path):
    marker = tmp_path / "it ran"
    torch.save({"model": Hostile(str(marker))}, tmp_path / "hostile.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Hostile(str(marker))))
    for name in ("hostile.pth", "bare.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_state_dict(tmp_path / name)
    assert not marker.exists()


class Opens(Hostile):
    def __reduce__(self):
        return open, (self.path, "w")


def test_a_call_beside_the_tensors_is_left_out_and_does_not_run(tmp_path):
    marker = tmp_path / "it ran"
    for old in (True, False):
        torch.save(
            {"state_dict": {"a": torch.ones(1)}, "args": Opens(str(marker))},
            tmp_path / "x.pth",
            _use_new_zipfile_serialization=not old,
        )
        assert read_state_dict(tmp_path / "x.pth") == {"a": torch.ones(1)}
    assert not marker.exists()


def test_files_are_read_whatever_wraps_the_state(tmp_path):
    state = {"head.bias": torch.arange(3.0)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"model": state}, tmp_path / "c.pth")
    torch.save({"state_dict": state}, tmp_path / "d.pt")
    for path in tmp_path.iterdir():
        assert torch.equal(read_state_dict(path)["head.bias"], state["head.bias"])


@pytest.mark.parametrize(("last", "average"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_of_a_file_with_both_the_averaged_weights_are_taken_as_timm_takes_them(last, average, tmp_path):
    path = tmp_path / "model_best.pth"
    torch.save({last: {"a": torch.zeros(1)}, average: {"a": torch.ones(1)}}, path)
    assert read_state_dict(path) == timm_reads(path) == {"a": torch.ones(1)}


def test_files_that_hold_no_weights_are_refused_by_name(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match=path.name) as raised:
            read_state_dict(path)
        assert not str(raised.value).endswith(": "), "says no reason"
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        read_state_dict(tmp_path / "missing.pth")
