import math
from dataclasses import replace

import pytest
import torch
from standin import StandinModel, standin_batch, standin_config

from pipeline.engine import build_engine
from pipeline.interfaces import Batch
from pipeline.train.evaluate import evaluate
from pipeline.train.metrics import MetricSums
from pipeline.train.optim import parameter_groups
from pipeline.train.reporting import Reporter


@pytest.fixture
def engine():
    config, model = standin_config(), StandinModel()
    return build_engine(config, model, parameter_groups(model, config))


def test_every_sample_counts_once_however_it_is_batched(engine):
    whole: Batch = standin_batch(0, 23)
    cuts = [0, 1, 9, 17, 23]
    parts = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        targets = replace(whole.targets, labels=whole.targets.labels[start:end])
        parts.append(replace(whole, images=whole.images[start:end], targets=targets))
    one, many = evaluate(engine, {"a": [whole]}), evaluate(engine, {"a": parts})
    assert one == many and one["a"]["samples"] == 23


def test_evaluation_leaves_the_module_in_its_mode(engine):
    engine.module.train()
    evaluate(engine, {"a": [standin_batch(0, 4)]})
    assert engine.module.training


def test_no_batches_are_no_samples(engine):
    assert evaluate(engine, {"a": []}) == {"a": {"samples": 0.0}}


def test_sums_leave_out_what_is_not_finite_only_where_asked(engine):
    one, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    strict, lenient = MetricSums(), MetricSums(only_finite=True)
    for sums in (strict, lenient):
        sums.add({"loss": (one * 3, one)})
        sums.add({"loss": (bad, one)})
    assert lenient.reduce(engine) == {"loss": (3.0, 1.0)} and lenient.reduce(engine) == {}
    assert math.isnan(strict.reduce(engine)["loss"][0])


def test_figures_of_steps_that_will_be_repeated_are_removed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    with Reporter(tmp_path, main=True, step=1, total_steps=5) as reporter:
        reporter.write(2, {"loss": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1}\n{"step": 2, "loss": null}\n'


def test_other_ranks_write_nothing(tmp_path):
    with Reporter(tmp_path / "run", main=False, step=0, total_steps=5) as reporter:
        reporter.advance(), reporter.write(1, {"loss": 1.0}), reporter.say("hello")
    assert not (tmp_path / "run").exists()
