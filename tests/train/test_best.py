"""Which checkpoint is the best: one task's main metric, or the geometric mean of all."""

import json
import math
from types import SimpleNamespace

import pytest
from tinyrun import tiny_tasks_plain
from torch import nn

from pipeline.config.load import from_plain
from pipeline.run_folder import pointed
from pipeline.train import loop
from pipeline.train.evaluate import ranking_score
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

MAIN = {"digits": "top1", "captions": "CIDEr", "masks": "mIoU"}
SCORES = {1: (0.3, 0.9, 0.2), 2: (0.5, 0.4, 0.4), 3: (0.9, 0.5, 0.1), 4: (0.4, 0.4, 0.48)}
"""Step -> main metrics of digits, captions and masks. The arithmetic mean is highest at step 3, the geometric one at step 2."""


def trained(digits, output, monkeypatch, table, best=None, scale=None):
    """The step of the best checkpoint of a run whose evaluations give the table."""
    rounds = iter(table.values())

    def evaluate(*_):
        values = zip(MAIN.items(), next(rounds), strict=True)
        return {task: {metric: value and value * (scale or {}).get(task, 1.0)} for (task, metric), value in values if value != "absent"}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    settings = dict(steps=len(table), eval_every=1, keep_checkpoints=9, best=best)
    train(from_plain(tiny_tasks_plain(digits, output, train=settings, optim=dict(warmup_steps=0))))
    folder = pointed(output / "checkpoints", "best")
    return folder and int(folder.name.removeprefix("step_"))


@pytest.mark.parametrize("best, step", [(None, 2), ("digits", 3), ("captions", 1), ("masks", 4)])
def test_the_best_checkpoint_is_by_the_geometric_mean_or_by_the_task_that_is_named(digits, tmp_path, monkeypatch, best, step):
    assert trained(digits, tmp_path / "run", monkeypatch, SCORES, best) == step
    values = SCORES[step]
    score = values[list(MAIN).index(best)] if best else math.prod(values) ** (1 / 3)
    found = read_checkpoint(tmp_path / f"run/checkpoints/step_{step:08d}").facts["progress"]["best"]
    assert found == pytest.approx(score)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("best, score", [(None, None), ("masks", None), ("digits", 0.9)])
def test_a_score_that_is_not_finite_ranks_nothing(best, score, value):
    """As the best one so far a NaN would be below every later score, and could not be saved."""
    model = nn.Module()
    model.tasks = {task: SimpleNamespace(main_metric=metric) for task, metric in MAIN.items()}
    scores = {"digits": {"top1": 0.9}, "captions": {"CIDEr": 0.9}, "masks": {"mIoU": value}}
    assert ranking_score(model, scores, best) == score


@pytest.mark.parametrize("task", MAIN)
def test_the_unit_of_a_metric_does_not_decide(digits, tmp_path, monkeypatch, task):
    assert trained(digits, tmp_path / "run", monkeypatch, SCORES, scale={task: 100.0}) == 2


@pytest.mark.parametrize("best, step", [(None, 2), ("digits", 1), ("masks", 2)])
def test_an_evaluation_in_which_a_ranking_task_has_no_score_is_not_the_best(digits, tmp_path, monkeypatch, best, step):
    table = {1: (0.9, 0.9, None), 2: (0.5, 0.4, 0.4)}
    assert trained(digits, tmp_path / "run", monkeypatch, table, best) == step


def test_a_task_that_is_not_evaluated_does_not_rank(digits, tmp_path, monkeypatch):
    table = {step: (*values[:2], "absent") for step, values in SCORES.items()}
    assert trained(digits, tmp_path / "run", monkeypatch, table) == 3


def test_the_first_evaluation_is_the_best_so_far_even_at_0(digits, tmp_path, monkeypatch):
    assert trained(digits, tmp_path / "run", monkeypatch, {1: (0.5, 0.0, 0.5), 2: (0.9, 0.0, 0.9), 3: (0.1, 0.0, 0.1)}) == 1


def test_the_rule_is_held_by_what_a_run_writes(digits, tmp_path):
    train(from_plain(tiny_tasks_plain(digits, tmp_path, train=dict(steps=2, eval_every=1), optim=dict(warmup_steps=0))))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = [[line[f"val/{task}/{metric}"] for task, metric in MAIN.items()] for line in lines if "val/digits/top1" in line]
    means = [math.prod(row) ** (1 / 3) for row in values]
    assert len(means) == 2
    assert pointed(tmp_path / "checkpoints", "best").name == f"step_{1 + means.index(max(means)):08d}"
    assert read_checkpoint(tmp_path / "checkpoints/step_00000002").facts["progress"]["best"] == pytest.approx(max(means))
