"""Checkpoints as training scripts write them, by their own savers where these are here: the state dict that
is meant is found, and nothing else of the file is read."""

import argparse
import copy

import lightning
import pytest
import timm.utils
import torch
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from tiny import IMG, SIZES, tiny_vit
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import CheckpointError

NAME = "deit_tiny_patch16_224"


def timm_vit():
    return create_vit(NAME, num_classes=10, img_size=IMG, timm_options=SIZES)


def pair():
    """The state of a model as it was trained, and that of its average."""
    torch.manual_seed(0)
    trained, averaged = timm_vit(), timm_vit()
    return trained.state_dict(), averaged.state_dict()


def fills(tensors, state):
    """Whether the tensors fill a backbone with the values of timm's state."""
    model = tiny_vit("dtem", seed=3)
    load_weights(model, tensors)
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if key in own)


def test_timms_own_saver(tmp_path):
    model = timm_vit()
    average = timm.utils.ModelEmaV3(model, decay=0.5)
    for parameter in model.parameters():
        parameter.data.add_(1)
    args = argparse.Namespace(model=NAME, lr=1e-3, opt="adamw")
    saver = timm.utils.CheckpointSaver(
        *(model, torch.optim.AdamW(model.parameters()), args, average),
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(epoch=3, metric=70.5)
    found = read_state_dict(tmp_path / "model_best.pth.tar")
    assert fills(found, average.module.state_dict())
    said = str(found.contents)
    assert "took state_dict_ema" in said and f"arch {NAME}; epoch 3" in said
    assert "left out:" in said and "optimizer" in said and "args" in said
    assert fills(read_state_dict(tmp_path / "model_best.pth.tar", "model"), model.state_dict())


class _Mm(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = timm_vit()

    def forward(self, inputs, mode="tensor"):
        return {"loss": self.backbone(inputs).square().mean()}


@pytest.fixture(scope="module")
def by_mmengine(tmp_path_factory):
    """The file of two steps of mmengine's Runner with an average, and the two states."""
    folder = tmp_path_factory.mktemp("mmengine")
    model = _Mm()
    average = EMAHook(momentum=0.5)
    runner = Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=torch.utils.data.DataLoader([{"inputs": torch.randn(3, 64, 64)}] * 2),
        train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.5)),
        custom_hooks=[average],
        default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=2, by_epoch=False)),
        experiment_name="x",
        log_level="ERROR",
    )
    runner.train()
    return folder / "iter_2.pth", model.backbone.state_dict(), average.ema_model.module.backbone.state_dict()


def test_mmengines_runner_leaves_the_average_where_others_have_the_model(by_mmengine):
    path, trained, averaged = by_mmengine
    assert not torch.equal(trained["patch_embed.proj.weight"], averaged["patch_embed.proj.weight"])
    assert fills(read_state_dict(path), averaged)
    assert fills(read_state_dict(path, "model"), trained)
    contents = read_state_dict(path).contents
    assert contents.averaged and contents.place == "state_dict"
    assert "message_hub" in contents.left


class _Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = timm_vit()
        self.save_hyperparameters({"lr": argparse.Namespace(a=1)})

    def training_step(self, batch, _):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.mark.filterwarnings("ignore")
def test_lightnings_checkpoint_with_an_average(tmp_path):
    model, average = _Lit(), lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.5)
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        callbacks=[average],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader([torch.randn(3, 64, 64) for _ in range(2)]))
    trainer.save_checkpoint(path := tmp_path / "last.ckpt")
    raw = torch.load(path, weights_only=False)
    assert "current_model_state" in raw
    for prefer, name in (("ema", "state_dict"), ("model", "current_model_state")):
        found = read_state_dict(path, prefer)
        assert found.contents.averaged == (prefer == "ema") and found.contents.place == name
        assert fills(found, {key.removeprefix("net."): value for key, value in raw[name].items()})


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


HEAD = {"head.mlp.0.weight": torch.zeros(4, 48), "head.last_layer.weight_g": torch.ones(4, 1)}
ARGS = argparse.Namespace(arch="vit_tiny")


def dino(trained, averaged):
    teacher = prefixed(averaged, "backbone.") | HEAD
    states = {
        "student": prefixed(trained, "module.backbone.") | prefixed(HEAD, "module."),
        "teacher": teacher,
    }
    return states | {"epoch": 3, "args": ARGS, "dino_loss": {"center": torch.zeros(1, 4)}}


def mae(_, averaged):
    return {"model": averaged, "optimizer": {"state": {}}, "epoch": 3, "scaler": {}, "args": ARGS}


def average_of_torch(_, averaged):
    average = AveragedModel(timm_vit())
    average.module.load_state_dict(averaged)
    return average.state_dict()


def own_script(_, averaged):
    return {"model_state_dict": averaged, "optimizer_state_dict": {}, "loss": 0.5}


ONE = {
    "DINOv2": lambda _, other: {"teacher": prefixed(other, "backbone.") | prefixed(HEAD, "dino_head.")},
    "MAE": mae,
    "average of torch": average_of_torch,
    "compiled": lambda _, other: prefixed(other, "_orig_mod."),
    "Lightning": lambda _, other: {"state_dict": prefixed(other, "model."), "hyper_parameters": ARGS},
    "compiled, of several processes": lambda _, other: prefixed(other, "module._orig_mod."),
    "a script of one's own": own_script,
    "DeepSpeed": lambda _, other: {"module": other, "ds_config": {}, "ds_version": "0.1", "lr": 1e-3},
    "one in another": lambda _, other: {"model": {"state_dict": other, "epoch": 3}},
}
"""Who saves -> what, of one state; the first argument is not used."""
BOTH = {
    "DINO": dino,
    "DeiT": lambda one, other: {"model": one, "model_ema": other, "args": ARGS, "epoch": 1},
    "average of torch in a file": lambda one, other: {"ema": average_of_torch(one, other), "model": one},
    "others' average": lambda one, other: {"ema_state_dict": other, "state_dict": one, "meta": {}},
}


@pytest.mark.parametrize("script", ONE | BOTH)
def test_files_of_other_scripts(script, tmp_path):
    trained, averaged = pair()
    torch.save((ONE | BOTH)[script](trained, averaged), path := tmp_path / "x.pth")
    assert fills(read_state_dict(path), averaged)
    assert fills(read_state_dict(path, "model"), trained if script in BOTH else averaged)
    assert not {"n_averaged", "steps"} & read_state_dict(path).keys()


@pytest.mark.parametrize("old", [False, True], ids=["zip", "of before torch 1.6"])
def test_objects_of_any_class_are_left_out(old, tmp_path):
    odd = {
        "args": argparse.Namespace(lr=1),
        "scheduler": torch.optim.lr_scheduler.StepLR,
        "table": copy.deepcopy(_Odd(a=1)),
        "row": _Row([1, 2]),
        "slots": _Slots(),
        "shape": torch.Size([1]),
    }
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, **odd},
        path := tmp_path / "x.pth",
        _use_new_zipfile_serialization=not old,
    )
    found = read_state_dict(path)
    assert found == {"a": found["a"]} and torch.equal(found["a"], torch.ones(2))
    assert set(found.contents.left) == set(odd)


class _Odd(dict):
    """A dict of a class of its own, as configs are."""


class _Row(list):
    """A list of a class of its own."""


class _Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


def test_what_holds_no_state_dict_is_said(tmp_path):
    torch.save(nn.Linear(2, 2), whole := tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"a whole object.*model.state_dict\(\)"):
        read_state_dict(whole)
    torch.save({"module": {"a": torch.zeros(0), "b": torch.zeros(0)}}, divided := tmp_path / "divided.pt")
    with pytest.raises(CheckpointError, match=r"ZeRO 3.*zero_to_fp32"):
        read_state_dict(divided)
    torch.save({"epoch": 3, "optimizer": {"state": {}}}, none := tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds none: 'epoch', 'optimizer'"):
        read_state_dict(none)


@pytest.mark.parametrize(
    ("files", "way_out"),
    [
        (
            ["latest", "zero_to_fp32.py", "pytorch_model/mp_rank_00_model_states.pt"],
            "deepspeed.utils.zero_to_fp32",
        ),
        (["pytorch_model_fsdp_0/__0_0.distcp"], r"dcp_to_torch .*pytorch_model_fsdp_0 weights.pth"),
        (["checkpoint-500/model.safetensors", "runs/x"], "one of its checkpoints: .*checkpoint-500"),
        (["last.ckpt", "hparams.yaml"], "give a file: .*last.ckpt"),
    ],
)
def test_folders_with_weights_elsewhere_say_the_way(files, way_out, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=way_out):
        read_state_dict(tmp_path)
