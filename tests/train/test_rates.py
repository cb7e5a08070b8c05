"""Learning rates: the schedule, what rests, and what is reported."""

import math

import pytest
from standin import standin_config, standin_groups

from pipeline.config.schema import OptimConfig
from pipeline.parts import TRAINED
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
