"""Groups of parameters: each in one, with its decay and its part of the learning rate."""

from typing import get_args, get_type_hints

import pytest
from names import kind_of, owner_of
from standin import StandinModel, standin_groups

from pipeline.config.schema import TrainConfig
from pipeline.parts import TRAINED


@pytest.mark.parametrize(("mode", "kinds"), TRAINED.items())
def test_a_mode_trains_its_kinds_and_every_parameter_is_in_one_group(mode, kinds):
    by_name, groups, _ = standin_groups(mode)
    assert {kind_of(name) for name in by_name} == kinds
    assert sum(len(group["params"]) for group in groups) == len(by_name)
    assert set(by_name) == {name for name, _ in StandinModel().named_parameters() if kind_of(name) in kinds}


def test_every_mode_of_the_schema_is_tested():
    assert set(TRAINED) == set(get_args(get_type_hints(TrainConfig)["mode"]))


def test_a_frozen_task_is_in_no_group():
    by_name, _, _ = standin_groups(frozen=("b",))
    assert {owner_of(name) for name in by_name} == {None, "a"}


def test_biases_norms_and_position_embeddings_do_not_decay():
    by_name, _, config = standin_groups()
    decaying = {name for name, group in by_name.items() if group["weight_decay"] == config.optim.weight_decay}
    assert decaying == {name for name in by_name if name.endswith("weight") and "norm" not in name}


def test_layer_decay_falls_towards_the_input_and_spares_heads_and_metric():
    by_name, _, _ = standin_groups(layer_decay=0.5)
    scale = {name: group["lr_scale"] for name, group in by_name.items()}
    assert (
        scale["tasks.a.weight"]
        == scale["backbone.norm.weight"]
        == scale["backbone.blocks.0.metric.weight"]
        == 1
    )
    assert scale["backbone.blocks.1.fc.weight"] == 0.5
    assert scale["backbone.blocks.0.fc.weight"] == 0.25
    assert scale["backbone.pos_embed"] == 0.125
