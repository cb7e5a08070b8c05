"""Learning rates: the schedule, what rests, and what is reported."""

import math

import pytest
import torch
from standin import standin_config, standin_groups
from timm.utils import ModelEmaV3
from torch import nn

from pipeline.config.schema import OptimConfig
from pipeline.errors import ConfigError
from pipeline.parts import TRAINED
from pipeline.train.ema import Ema
from pipeline.train.rates import learning_rates, lr_at, reported_rates
from pipeline.train.steps import build_procedure


@pytest.mark.parametrize("held", [("a",), ("b",), ("a", "b"), None])
def test_what_only_absent_tasks_use_rests(held):
    _, groups, config = standin_groups(warmup_steps=0)
    rates = learning_rates(groups, 0, config, 100, tasks=held)
    awake = {group["owner"] for group in groups if rates[group["name"]] > 0}
    assert awake == {None, *(held or ("a", "b"))}
    assert all((rates[group["name"]] > 0) == (group["owner"] in awake) for group in groups)


def test_what_weighs_the_losses_has_its_own_rate_in_every_mode():
    group = [{"name": "balance", "kind": "balance", "owner": None, "lr_scale": 1.0}]
    for mode in TRAINED:
        config = standin_config(train={"mode": mode}, optim={"warmup_steps": 0})
        for step in range(2 * config.train.alternate_period):
            trains = build_procedure(config).spec(step).trains
            rates = learning_rates(group, step, config, 10**6, trains=trains)
            assert rates["balance"] == pytest.approx(config.balancing.lr)


def test_the_schedule_warms_up_to_the_peak_and_ends_at_the_floor():
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=4)
    curve = [lr_at(step, config, 24) for step in range(25)]
    assert curve[:4] == [0.25, 0.5, 0.75, 1.0] and curve[4] == 1.0
    assert math.isclose(curve[14], 0.55) and math.isclose(curve[24], 0.1)
    assert curve[4:] == sorted(curve[4:], reverse=True)


def test_poly_is_pytorchs_behind_the_warm_up():
    config = OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=4, schedule="poly", power=0.9)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=0.9)
    for step in range(4, 24):
        assert lr_at(step, config, 24) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step(), theirs.step()
    assert lr_at(23, config, 24) > 0, "a rate of 0 is a rest"


def test_linear_is_half_way_at_half_the_steps_and_the_others_keep_to_the_peak():
    linear = OptimConfig(lr=1.0, min_lr=0.2, warmup_steps=2, schedule="linear")
    assert math.isclose(lr_at(7, linear, 12), 0.6) and lr_at(2, linear, 12) == 1.0
    constant = OptimConfig(lr=1.0, warmup_steps=2, schedule="constant")
    assert [lr_at(step, constant, 12) for step in (0, 1, 2, 11)] == [0.5, 1, 1, 1]
    stairs = OptimConfig(lr=1.0, schedule="step", milestones=[0.5, 0.75], gamma=0.1)
    assert [round(lr_at(step, stairs, 8), 6) for step in range(8)] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(warmup_steps=2, warmup_epochs=1.0), "warmup_steps and optim.warmup_epochs.*give one of them"),
        (dict(schedule="step"), "'step' and optim.milestones.*they go together"),
        (dict(milestones=[0.5]), "'cosine' and optim.milestones.*they go together"),
        (dict(schedule="step", milestones=[0.7, 0.5]), "rising shares"),
        (dict(warmup_share=1.0), "warmup_share is 1.0; give a share below 1"),
    ],
)
def test_a_mistaken_schedule_names_the_way_out(settings, said):
    with pytest.raises(ConfigError, match=said):
        OptimConfig(**settings)


def test_the_average_warms_up_as_timms_does():
    """Its first average is the weights behind the first step."""
    model = nn.Linear(3, 2)
    ours, theirs = Ema(model, 0.7, warms_up=True), ModelEmaV3(model, decay=0.7, use_warmup=True)
    for step in range(12):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ours.update(step), theirs.update(model, step=step + 1)
        torch.testing.assert_close(dict(ours.averages())["weight"], theirs.module.weight)


def test_metric_has_its_own_rate_and_a_resting_kind_has_none():
    _, groups, config = standin_groups("end_to_end", metric_lr=0.5, warmup_steps=0)
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
    _, groups, config = standin_groups(mode, lr=1e-3, metric_lr=0.5, warmup_steps=0)
    groups = [*groups, {"name": "balance", "kind": "balance", "owner": None, "lr_scale": 1.0}]
    for step in range(2 * config.train.alternate_period):
        rates = reported_rates(groups, step, config, 10**6)
        assert rates["lr"] == pytest.approx(lr) and rates["lr/balance"] == pytest.approx(config.balancing.lr)
        assert {name.removeprefix("lr/") for name in rates} == {"lr", "balance", *TRAINED[mode]}
