import math
from typing import get_args, get_type_hints

import pytest
import torch
from standin import StandinModel, standin_config

from pipeline.config.schema import OptimConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.train.optim import (
    kind_of,
    learning_rates,
    lr_at,
    owner_of,
    parameter_groups,
    reported_rates,
    set_trainable,
)
from pipeline.train.steps import build_procedure

KINDS = {
    "modular": {"metric"},
    "backbone": {"base", "head"},
    "heads": {"head"},
    "joint": {"metric", "base", "head"},
    "end_to_end": {"metric", "base", "head"},
}


def groups_of(mode="joint", frozen=(), **optim):
    model, config = StandinModel(), standin_config(train={"mode": mode}, optim=optim)
    set_trainable(model, mode, frozen)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}, groups, config


@pytest.mark.parametrize(("mode", "kinds"), KINDS.items())
def test_a_mode_trains_its_kinds_and_every_parameter_is_in_one_group(mode, kinds):
    by_name, groups, _ = groups_of(mode)
    assert {kind_of(name) for name in by_name} == kinds
    assert sum(len(group["params"]) for group in groups) == len(by_name)
    assert set(by_name) == {name for name, _ in StandinModel().named_parameters() if kind_of(name) in kinds}


def test_every_mode_of_the_schema_is_tested():
    assert set(KINDS) == set(get_args(get_type_hints(TrainConfig)["mode"]))


def test_a_frozen_task_is_in_no_group():
    by_name, _, _ = groups_of(frozen=("b",))
    assert {owner_of(name) for name in by_name} == {None, "a"}


@pytest.mark.parametrize(
    ("name", "kind", "owner"),
    [
        ("backbone.blocks.0.attn.qkv.weight", "base", None),
        ("backbone.blocks.0.metric.weight", "metric", None),
        ("backbone.blocks.0.metric.tasks.masks.weight", "metric", "masks"),
        ("backbone.blocks.0.metric.adapters.masks.up", "metric", "masks"),
        ("tasks.masks.decode_head.adapters.other.weight", "head", "masks"),
        ("tasks.metric.metric.weight", "head", "metric"),
        ("balancing.log_variance.masks", "balance", "masks"),
        ("balancing.weights", "balance", None),
    ],
)
def test_a_name_tells_kind_and_owner(name, kind, owner):
    assert (kind_of(name), owner_of(name)) == (kind, owner)


@pytest.mark.parametrize("held", [("a",), ("b",), ("a", "b"), None])
def test_what_only_absent_tasks_use_rests(held):
    _, groups, config = groups_of(warmup_steps=0)
    rates = learning_rates(groups, 0, config, 100, tasks=held)
    awake = {group["owner"] for group in groups if rates[group["name"]] > 0}
    assert awake == {None, *(held or ("a", "b"))}
    assert all((rates[group["name"]] > 0) == (group["owner"] in awake) for group in groups)


def test_what_weighs_the_losses_has_its_own_rate_in_every_mode():
    group = [{"name": "balance", "kind": "balance", "owner": None, "lr_scale": 1.0}]
    for mode in KINDS:
        config = standin_config(train={"mode": mode}, optim={"warmup_steps": 0})
        for step in range(2 * config.train.alternate_period):
            trains = build_procedure(config).spec(step).trains
            rates = learning_rates(group, step, config, 10**6, trains=trains)
            assert rates["balance"] == pytest.approx(config.balancing.lr)


def test_biases_norms_and_position_embeddings_do_not_decay():
    by_name, _, config = groups_of()
    decaying = {name for name, group in by_name.items() if group["weight_decay"] == config.optim.weight_decay}
    assert decaying == {name for name in by_name if name.endswith("weight") and "norm" not in name}


def test_layer_decay_falls_towards_the_input_and_spares_heads_and_metric():
    by_name, _, _ = groups_of(layer_decay=0.5)
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


def test_the_schedule_warms_up_to_the_peak_and_ends_at_the_floor():
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=4)
    curve = [lr_at(step, config, 24) for step in range(25)]
    assert curve[:4] == [0.25, 0.5, 0.75, 1.0] and curve[4] == 1.0
    assert math.isclose(curve[14], 0.55) and math.isclose(curve[24], 0.1)
    assert curve[4:] == sorted(curve[4:], reverse=True)


def test_metric_has_its_own_rate_and_a_resting_kind_has_none():
    _, groups, config = groups_of("end_to_end", metric_lr=0.5, warmup_steps=0)
    period = config.train.alternate_period
    for step in (0, period - 1):
        trains = build_procedure(config).spec(step).trains
        rates = learning_rates(groups, step, config, 100, trains=trains)
        assert all((rates[group["name"]] > 0) == (group["kind"] in trains) for group in groups)
    assert max(rates.values()) > 0.4


@pytest.mark.parametrize(
    "mode, lr", [("joint", 1e-3), ("heads", 1e-3), ("modular", 0.5), ("end_to_end", 1e-3)]
)
def test_the_reported_rate_is_that_of_the_model_and_not_of_what_weighs_its_losses(mode, lr):
    """In every step, whatever rests in it; each kind's own stands beside it."""
    _, groups, config = groups_of(mode, lr=1e-3, metric_lr=0.5, warmup_steps=0)
    groups = [*groups, {"name": "balance", "kind": "balance", "owner": None, "lr_scale": 1.0}]
    for step in range(2 * config.train.alternate_period):
        rates = reported_rates(groups, step, config, 10**6)
        assert rates["lr"] == pytest.approx(lr) and rates["lr/balance"] == pytest.approx(config.balancing.lr)
        assert {name.removeprefix("lr/") for name in rates} == {"lr", "balance", *KINDS[mode]}


@pytest.mark.parametrize("mode", ["modular", "end_to_end", "joint"])
def test_nothing_to_learn_is_a_mistake(mode):
    with pytest.raises(ConfigError, match="no metric embedding to learn"):
        set_trainable(torch.nn.Linear(2, 2), mode)
