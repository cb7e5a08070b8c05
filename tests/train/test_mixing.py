"""Which tasks a step holds, how often, and how long an epoch of several tasks is."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from tinyrun import tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.plan.facts import ModelFacts
from pipeline.plan.resolve import resolve
from pipeline.train.loop import train
from pipeline.train.mixing import tasks_of_step
from pipeline.train.storage import read_checkpoint

FACTS = ModelFacts(patch=(8, 8), depth=3, num_prefix=1, grid=(4, 4))
SAMPLES = {"digits": 1001, "captions": 90, "masks": 404}
SHARES = [
    {"digits": 1.0, "captions": 1.0, "masks": 1.0},
    {"digits": 6.0, "captions": 3.0, "masks": 1.0},
    {"digits": 0.1, "captions": 50, "masks": 2},
]
STEPS = 3000


def resolved(samples=SAMPLES, *, world_size=1, seed=42, mode="all", temperature=1.0, tasks=None, **sections):
    sections = {
        "mixing": {"mode": mode, "temperature": temperature},
        "engine": {"type": "deepspeed"},
    } | sections
    return resolve(
        from_plain(tiny_tasks_plain(Path("-"), Path("-"), tasks=tasks or {}, **sections) | {"seed": seed}),
        world_size,
        FACTS,
        samples,
    )


def with_shares(shares):
    return {name: {"share": share} for name, share in shares.items()}


@pytest.mark.parametrize("own", [{}, {"masks": 3}, {"digits": 2, "captions": 5}])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_of_all_holds_every_task_with_its_micro_batches(own, accumulation):
    tasks = {name: {"accumulation": count} for name, count in own.items()}
    run = resolved(tasks=tasks, engine={"type": "deepspeed", "accumulation": accumulation}, world_size=2)
    expected = {name: own.get(name, 1) * accumulation for name in SAMPLES}
    assert run.micro_batches == expected
    assert run.global_batch == {
        name: 2 * expected[name] * run.config.tasks[name].data.batch_size for name in SAMPLES
    }
    assert run.shares == dict.fromkeys(SAMPLES, 1.0)
    for step in range(5):
        plan = tasks_of_step(run, step)
        assert Counter(plan) == expected and list(dict.fromkeys(plan)) == list(SAMPLES)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_sampled_step_holds_one_task_and_is_a_function_of_seed_and_step(accumulation):
    run, again, other = (
        resolved(mode="sampled", tasks={"masks": {"accumulation": accumulation}}, seed=seed)
        for seed in (1, 1, 2)
    )
    plans = [tasks_of_step(run, step) for step in range(200)]
    assert all(plan == (plan[0],) * run.micro_batches[plan[0]] for plan in plans)
    torch.manual_seed(99)  # what the process drew before must not matter, nor the order of the questions
    assert [tasks_of_step(again, step) for step in reversed(range(200))] == plans[::-1]
    assert [tasks_of_step(other, step) for step in range(200)] != plans


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tasks_are_drawn_as_often_as_share_and_temperature_say(shares, temperature):
    run = resolved(mode="sampled", temperature=temperature, tasks=with_shares(shares))
    drawn = Counter(tasks_of_step(run, step)[0] for step in range(STEPS))
    powers = {name: share ** (1 / temperature) for name, share in shares.items()}
    for name, power in powers.items():
        p = power / sum(powers.values())
        assert run.shares[name] == pytest.approx(p)
        assert abs(drawn[name] - STEPS * p) <= 4 * math.sqrt(STEPS * p * (1 - p)) + 1


@pytest.mark.parametrize("shares", SHARES)
def test_a_higher_temperature_evens_the_tasks_out(shares):
    spreads = []
    for temperature in (0.5, 1, 2, 8, 1e9):
        drawn = resolved(mode="sampled", temperature=temperature, tasks=with_shares(shares)).shares
        assert sum(drawn.values()) == pytest.approx(1)
        spreads.append(max(drawn.values()) - min(drawn.values()))
    assert spreads == sorted(spreads, reverse=True) and spreads[-1] < 1e-6


@pytest.mark.parametrize("epochs", [0.5, 1, 7])
@pytest.mark.parametrize("tasks", [{}, {"digits": {"accumulation": 3}}])
def test_shares_that_are_not_given_let_all_epochs_end_together(epochs, tasks):
    run = resolved(mode="sampled", tasks=tasks, train={"steps": None, "epochs": epochs}, world_size=2)
    for name, samples in SAMPLES.items():
        seen = run.total_steps * run.shares[name] * run.global_batch[name]
        assert -1e-6 <= seen - epochs * samples < run.global_batch[name]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"mode": "sampled"},
        {"mode": "sampled", "temperature": 4.0},
        {"mode": "sampled", "tasks": with_shares(SHARES[1])},
    ],
)
@pytest.mark.parametrize("epochs", [1, 2.5])
def test_an_epoch_shows_every_sample_of_every_task_at_least_once_and_is_no_longer(sections, epochs):
    """Where tasks are drawn: in expectation."""
    run = resolved(train={"steps": None, "epochs": epochs}, **sections)
    seen = {
        name: run.total_steps * run.shares[name] * run.global_batch[name] / (epochs * SAMPLES[name])
        for name in SAMPLES
    }
    slowest = min(seen, key=seen.__getitem__)
    one_step = run.shares[slowest] * run.global_batch[slowest] / (epochs * SAMPLES[slowest])
    assert 1 - 1e-9 <= seen[slowest] < 1 + one_step


def test_what_needs_the_number_of_samples_waits_for_it():
    run = resolved(None, mode="sampled", train={"steps": None, "epochs": 1})
    assert (run.shares, run.total_steps) == ({}, None)
    assert resolved(None, mode="sampled", tasks=with_shares(SHARES[1])).shares == pytest.approx(
        {"digits": 0.6, "captions": 0.3, "masks": 0.1}
    )


@pytest.mark.parametrize("mode", ["all", "sampled"])
def test_one_fed_task_is_in_every_step(mode):
    plain = tiny_tasks_plain(Path("-"), Path("-"), mixing={"mode": mode})
    for name in ("captions", "masks"):
        plain["tasks"][name] |= {"frozen": True, "data": plain["tasks"][name]["data"] | {"train": None}}
    run = resolve(from_plain(plain), 1, FACTS, {"digits": 100})
    assert {tasks_of_step(run, step) for step in range(50)} == {("digits",)} and run.shares == {"digits": 1.0}


@pytest.mark.parametrize("mode", ["all", "sampled"])
def test_a_run_sees_the_samples_of_its_plan_and_none_of_a_frozen_task(digits, tmp_path, mode):
    plain = tiny_tasks_plain(
        digits,
        tmp_path / "run",
        mixing={"mode": mode},
        tasks={"digits": {"accumulation": 2}},
        train={"steps": 4},
    )
    captions = plain["tasks"]["captions"]
    captions |= {"frozen": True, "data": captions["data"] | {"train": None}}
    config = from_plain(plain)
    train(config)
    run = resolve(config, 1, FACTS, {"digits": 80, "masks": 80})
    held = Counter(task for step in range(4) for task in tasks_of_step(run, step))
    progress = read_checkpoint(tmp_path / "run/checkpoints/step_00000004").facts["progress"]
    assert progress["samples"] == {
        task: count * config.tasks[task].data.batch_size for task, count in held.items()
    }
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    fed = [line for line in lines if "epoch/digits" in line]
    assert {task: fed[-1][f"epoch/{task}"] * 80 for task in held} == pytest.approx(progress["samples"])
    assert not any(key.startswith(("captions/", "epoch/captions")) for line in fed for key in line)
    assert any("val/captions/CIDEr" in line for line in lines)
