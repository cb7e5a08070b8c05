"""Every shipped config, in every phase of its training: what is frozen or rests is in evaluation mode."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import nn

import pipeline.data.samples  # noqa: F401  (registration)
import tasks  # noqa: F401  (registration)
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.model import MultiTaskModel, build_model
from pipeline.modes import set_modes
from pipeline.parts import TRAINED, roles_of, set_trainable
from pipeline.train.steps import build_procedure
from pipeline.train.steps.procedure import Procedure

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
RANDOM = (nn.Dropout, DropPath, nn.modules.batchnorm._BatchNorm)
"""What acts otherwise in training mode."""


def model_of(config: RunConfig) -> MultiTaskModel:
    """Without weights; those of heads for masks are there, as they are tried when they are built."""
    config = replace(config, backbone=replace(config.backbone, weights=None, pretrained=False))
    masks = any(task.type == "segmentation" for task in config.tasks.values())
    with torch.device("cpu" if masks else "meta"):
        model = build_model(config)
    set_trainable(model, config.train.mode, [name for name, task in config.tasks.items() if task.frozen])
    return model


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def run(request) -> tuple[RunConfig, MultiTaskModel, Procedure]:
    config = load_config(request.param)
    return config, model_of(config), build_procedure(config)


def test_what_learns_nothing_in_a_phase_is_in_evaluation_mode_in_it(run):
    config, model, procedure = run
    roles, seen = roles_of(model), set()
    phases = {procedure.spec(step).trains for step in range(2 * config.train.alternate_period)}
    for trains in phases:
        set_modes(model, trains)
        learning = {
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and roles[name].kind in trains
        }
        seen |= {roles[name].kind for name in learning}
        for part, module in model.named_modules():
            below = [f"{part}.{name}" for name, _ in module.named_parameters()]
            if part and below:
                assert module.training <= any(name in learning for name in below), f"{part} in {set(trains)}"
        assert all(model.get_submodule(name.rpartition(".")[0]).training for name in learning)
    assert seen - {"balance"} == TRAINED[config.train.mode]


def test_a_backbone_that_rests_drops_nothing(run):
    """Drop path would otherwise switch blocks off in the network whose merges are priced."""
    config, model, procedure = run
    parts = [part for part in model.backbone.modules() if isinstance(part, RANDOM)]
    assert (config.backbone.drop_path > 0) == any(isinstance(part, DropPath) for part in parts)
    for step in range(2 * config.train.alternate_period):
        spec = procedure.spec(step)
        set_modes(model, spec.trains)
        assert all(part.training == ("base" in spec.trains) for part in parts)
