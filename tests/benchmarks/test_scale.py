"""The simulation of many machines and the arithmetic of failures are right."""

import failures
import pytest
import scale_sim
from scale_sim import Machine, Setting, balance, every_sample_once, of_cluster

FETCHED = "shards fetched per shard used"


@pytest.mark.parametrize("nodes", [1, 3, 4])
def test_a_small_cluster_fetches_its_part(nodes):
    setting = Setting(gpus=2, batch=4, samples=20, fetch_ahead=40, steps=200)
    scores = of_cluster(160, nodes, 8, setting)
    assert scores["samples of a machine in a step"] == [8, 8]
    assert scores[FETCHED] <= 1 + nodes / 8 + 0.3
    assert balance(scale_sim.SampleOrder([20] * 160, 0, 8, 8), nodes, setting) == [8, 8]
    assert every_sample_once(40, setting) == 800


def test_a_machine_counts_what_it_fetches_and_waits_for():
    setting = Setting(gbit=8, samples=1000, image_kb=1000)  # a second a shard
    machine = Machine(setting)
    machine.step([1], [1, 2], 2)
    assert machine.fetched == 2 and machine.late == 1 and machine.waited == pytest.approx(1)
    machine.clock += 10
    machine.step([2], [3], 3)
    assert machine.fetched == 3 and machine.late == 1 and machine.needed == 2 and machine.most_kept == 3
    machine.step([1], [1], 2)
    assert machine.fetched == 4 and machine.late == 2, "what was out of sight is fetched again"
    machine.forget_counts()
    assert machine.fetched == machine.late == machine.needed == machine.waited == 0


@pytest.mark.parametrize("cost", [0.001, 0.05, 1.0])
@pytest.mark.parametrize("between", [1.0, 6.0, 50.0])
def test_no_other_interval_loses_less(cost, between):
    best = failures.interval(cost, between)
    least = failures.lost_share(best, cost, between)
    for factor in (0.25, 0.5, 2, 4):
        assert failures.lost_share(best * factor, cost, between) > least - 0.002
    assert failures.interval(cost, 4 * between) > best


def test_hours_between_failures_are_those_that_were_published():
    rates = list(failures.PUBLISHED.values())
    assert failures.hours_between(rates[0], 16_384) == pytest.approx(54 * 24 / 419)
    assert failures.hours_between(rates[1], 16_384) == pytest.approx(1.8)
    assert failures.hours_between(rates[2], 1_024) == pytest.approx(7.9)
