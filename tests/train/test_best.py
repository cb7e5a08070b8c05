"""Which checkpoint is the best: one task's main metric, or the geometric mean of all."""

import json
import math
from types import SimpleNamespace

import pytest
from tinyrun import tiny_plain, tiny_tasks_plain
from torch import nn

from pipeline.config.load import from_plain
from pipeline.run_folder import last, pointed
from pipeline.train import loop
from pipeline.train.evaluate import ranking_score
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

MAIN = {"digits": "top1", "captions": "CIDEr", "masks": "mIoU"}
SCORES = {1: (0.3, 0.9, 0.2), 2: (0.5, 0.4, 0.4), 3: (0.9, 0.5, 0.1), 4: (0.4, 0.4, 0.48)}
"""Step -> main metrics of digits, captions and masks. The arithmetic mean is highest at step 3, the geometric
one at step 2."""


def score_of(values, best=None):
    """Of an evaluation with these main metrics, in the order of MAIN; a task without a value was not
    evaluated."""
    model = nn.Module()
    model.tasks = {task: SimpleNamespace(main_metric=metric) for task, metric in MAIN.items()}
    return ranking_score(
        model, {task: {MAIN[task]: value} for task, value in zip(MAIN, values, strict=False)}, best
    )


def best_step(table, best=None):
    return max(table, key=lambda step: score_of(table[step], best))


@pytest.mark.parametrize("best, step", [(None, 2), ("digits", 3), ("captions", 1), ("masks", 4)])
def test_the_best_evaluation_is_by_the_geometric_mean_or_by_the_task_that_is_named(best, step):
    values = SCORES[step]
    assert best_step(SCORES, best) == step
    assert score_of(values, best) == pytest.approx(
        values[list(MAIN).index(best)] if best else math.prod(values) ** (1 / 3)
    )


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("best, score", [(None, None), ("masks", None), ("digits", 0.9)])
def test_a_score_that_is_not_there_or_not_finite_ranks_nothing(best, score, value):
    """As the best one so far a NaN would be below every later score, and could not be saved."""
    assert score_of((0.9, 0.9, value), best) == score


@pytest.mark.parametrize("task", range(len(MAIN)))
def test_the_unit_of_a_metric_does_not_decide(task):
    scaled = {
        step: [100 * value if i == task else value for i, value in enumerate(values)]
        for step, values in SCORES.items()
    }
    assert best_step(scaled) == best_step(SCORES) == 2


def test_a_task_that_is_not_evaluated_does_not_rank():
    assert best_step({step: values[:2] for step, values in SCORES.items()}) == 3
    assert score_of((0.9, 0.5), "masks") is None


def test_the_first_evaluation_with_a_score_is_the_best_until_a_higher_one(digits, tmp_path, monkeypatch):
    """Even with a score of 0, and the later of two alike is not better."""
    rounds = iter([None, 0.0, 0.0, 0.5, 0.5, 0.4])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"digits": {"top1": next(rounds)}})
    train(from_plain(tiny_plain(digits, tmp_path, train=dict(steps=6, eval_every=1, keep_checkpoints=9))))
    found = {step: tmp_path / f"checkpoints/step_{step:08d}" for step in range(1, 7)}
    saved = {step: folder for step, folder in found.items() if (folder / "manifest.json").is_file()}
    assert list(saved) == [2, 4, 6], "what is better is saved at once, and the last step is"
    assert [read_checkpoint(folder).facts["progress"]["best"] for folder in saved.values()] == [0.0, 0.5, 0.5]
    assert pointed(tmp_path / "checkpoints", "best") == found[4]


def test_a_run_ends_where_its_patience_does_and_goes_on_with_more(digits, tmp_path, monkeypatch):
    """Best at the second of evaluations at steps 2, 4, ...; the end of its patience is remembered."""
    rounds = iter([0.3, 0.5, 0.5, 0.4, 0.3, 0.2])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"digits": {"top1": next(rounds)}})

    def last_step(patience):
        train(from_plain(tiny_plain(digits, tmp_path, train=dict(steps=99, eval_every=2, patience=patience))))
        found = read_checkpoint(last(tmp_path / "checkpoints")).facts["progress"]
        return found["step"], found["best_step"]

    assert last_step(2) == (8, 4)
    assert last_step(2) == (8, 4), "a run that is over has no step left"
    assert last_step(3) == (10, 4)


def test_the_rule_is_held_by_what_a_run_writes(digits, tmp_path):
    train(
        from_plain(
            tiny_tasks_plain(digits, tmp_path, train=dict(steps=2, eval_every=1), optim=dict(warmup_steps=0))
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = [
        [line[f"val/{task}/{metric}"] for task, metric in MAIN.items()]
        for line in lines
        if "val/digits/top1" in line
    ]
    means = [math.prod(row) ** (1 / 3) for row in values]
    assert len(means) == 2
    assert pointed(tmp_path / "checkpoints", "best").name == f"step_{1 + means.index(max(means)):08d}"
    assert read_checkpoint(tmp_path / "checkpoints/step_00000002").facts["progress"]["best"] == pytest.approx(
        max(means)
    )
