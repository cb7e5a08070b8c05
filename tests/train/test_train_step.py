"""One step of the loop: what it holds in memory, and what it asks of the device."""

import weakref
from dataclasses import replace

import pytest
import torch
from asks_nothing import AsksNothing
from torch import nn

from pipeline.train.metrics import MetricSums
from pipeline.train.reporting import Stopwatch
from pipeline.train.setup import build_run
from pipeline.train.train_step import train_step


def steps(run, count=1):
    streams, sums, watch = (
        {name: iter(stream) for name, stream in run.streams.items()},
        MetricSums(),
        Stopwatch(),
    )
    for _ in range(count):
        train_step(run, ["digits"], streams, sums, watch)


def test_predictions_are_gone_when_the_backward_pass_begins(tiny_run, monkeypatch):
    """Those of a captioner are as large as all that the backward pass needs."""
    run = build_run(tiny_run(), "none")
    forward, backward, predictions = run.engine.forward, run.engine.backward, []

    def watched_forward(batch, spec):
        output = forward(batch, spec)
        predictions.append(weakref.ref(output.predictions))
        return output

    def watched_backward(loss, *, last):
        assert predictions[-1]() is None
        backward(loss, last=last)

    monkeypatch.setattr(run.engine, "forward", watched_forward)
    monkeypatch.setattr(run.engine, "backward", watched_backward)
    steps(run)
    assert len(predictions) == 1


@pytest.mark.parametrize(
    "mode, objective",
    [
        ("joint", "supervised"),
        ("joint", "distill"),
        ("joint", "consistency"),
        ("joint", "budget"),
        ("end_to_end", "merge_cost"),
    ],
)
def test_a_step_of_the_engine_asks_the_device_nothing(mode, objective, tiny_run, monkeypatch):
    train = dict(mode=mode) | (dict(alternate_period=2) if mode == "end_to_end" else {})
    merging = dict(policy="as_vit" if objective == "budget" else "dtem")
    run = build_run(tiny_run(train=train, objective=dict(type=objective), merging=merging), "none")
    for name in ("forward", "backward", "step"):
        monkeypatch.setattr(run.engine, name, AsksNothing.within(getattr(run.engine, name)))
    steps(run, 2)


def test_a_skipped_step_leaves_running_statistics_as_they_were(tiny_run, monkeypatch):
    """One forward that is not finite would make them NaN for good, and every later checkpoint and score with
    them."""
    run = build_run(tiny_run(), "none")
    norm = run.engine.module.tasks["digits"].fc_norm = nn.BatchNorm1d(run.engine.module.backbone.embed_dim)
    steps(run)
    forward, before = run.engine.forward, norm.running_var.clone()
    assert not torch.equal(before, torch.ones_like(before)), "steps that are not skipped move them"
    monkeypatch.setattr(run.engine, "forward", lambda batch, spec: forward(without_numbers(batch), spec))
    steps(run)
    assert run.nonfinite[0] == 1 and torch.equal(norm.running_var, before)
    monkeypatch.setattr(run.engine, "forward", forward)
    steps(run)
    assert (
        run.nonfinite[0] == 0
        and norm.running_var.isfinite().all()
        and not torch.equal(norm.running_var, before)
    )


def without_numbers(batch):
    return replace(batch, images=torch.full_like(batch.images, torch.nan))
