"""Procedures of a step: what each is for, and one of a user's own through a whole run."""

from dataclasses import replace
from itertools import repeat
from typing import get_args, get_type_hints

import procedures  # noqa: F401  (registration)
import pytest
import torch
from tinyrun import CONTINUOUS

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError
from pipeline.parts import BALANCE, METRIC, TRAINED
from pipeline.train.loop import train
from pipeline.train.metrics import MetricSums
from pipeline.train.reporting import Stopwatch
from pipeline.train.setup import build_run
from pipeline.train.steps import STEPS, build_procedure
from pipeline.train.storage import read_checkpoint
from pipeline.train.train_step import train_step

MODES = get_args(get_type_hints(TrainConfig)["mode"])
OWN = ["sharpness_aware", "each_alone"]
SERVED = [(name, mode) for name in STEPS.names() for mode in STEPS.get(name).modes]
UNMERGED = dict(
    train=dict(mode="backbone"), merging=dict(policy="none", reduction=0), backbone=dict(drop_path=0.0)
)
"""Nothing is chosen and nothing is left to chance: two ways of computing a step can be compared."""


@pytest.mark.parametrize("name, mode", SERVED)
def test_a_procedure_trains_what_its_mode_says(name, mode):
    """Sooner or later; what weighs the losses always, and embeddings only where they feel the loss."""
    procedure = STEPS.build(name, TrainConfig(mode=mode, steps=9, alternate_period=3))
    specs = [procedure.spec(step) for step in range(6)]
    assert set().union(*(spec.trains for spec in specs)) == TRAINED[mode] | {BALANCE}
    assert all(BALANCE in spec.trains and len(spec.trains) > 1 for spec in specs)
    assert all(spec.relaxed == (METRIC in spec.trains) for spec in specs)
    assert specs == [procedure.spec(step) for step in range(6)]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_procedure(mode, tiny_run):
    config = tiny_run(train=dict(mode=mode))
    assert mode in build_procedure(config).modes


@pytest.mark.parametrize(
    "mode, name, message",
    [
        ("joint", "alternate", "carries out train.mode 'end_to_end', and train.mode is 'joint'"),
        ("end_to_end", "plain", "'modular' or 'joint' .*, and train.mode is 'end_to_end'"),
        ("joint", "plane", "unknown step 'plane'; did you mean 'plain'"),
    ],
)
def test_a_procedure_that_cannot_carry_out_the_mode_is_refused(mode, name, message, tiny_run):
    with pytest.raises(ConfigError, match=message):
        build_run(tiny_run(train=dict(mode=mode), step=dict(type=name)), "none")


def test_embeddings_learn_in_every_such_th_step():
    procedure = STEPS.build("alternate", TrainConfig(mode="end_to_end", steps=9, alternate_period=3))
    assert [METRIC in procedure.spec(step).trains for step in range(6)] == [False, False, True] * 2


@pytest.mark.parametrize("name", OWN)
def test_a_procedure_of_ones_own_trains_is_saved_and_resumed(name, tiny_run, tmp_path):
    sections = dict(step=dict(type=name), engine=dict(accumulation=2), train=dict(steps=6, save_every=3))
    train(tiny_run(tmp_path / "whole", **sections))
    half = tmp_path / "whole/checkpoints/step_00000003"
    train(tiny_run(tmp_path / "parts", **sections), resume=str(half))
    train(tiny_run(tmp_path / "plain", **sections | dict(step=dict(type="plain"))))
    whole, parts, plain = (
        read_checkpoint(tmp_path / name / "checkpoints/step_00000006") for name in ("whole", "parts", "plain")
    )
    assert all(torch.equal(tensor, parts.tensors[key]) for key, tensor in whole.tensors.items())
    assert whole.facts["progress"] == parts.facts["progress"]
    assert not torch.equal(
        whole.tensors["model.backbone.norm.weight"], plain.tensors["model.backbone.norm.weight"]
    )
    steps = {tensor.item() for key, tensor in whole.tensors.items() if key.startswith("step.")}
    assert steps == {12.0 if name == "each_alone" else 6.0}


def one_step(run, batch):
    """The gradients and weights right before the optimizer moves."""
    seen, step, streams = {}, run.engine.step, {"digits": repeat(batch)}

    def watched(rates):
        for name, weight in run.engine.module.named_parameters():
            seen[name] = weight.detach().clone(), weight.grad.clone()
        return step(rates)

    run.engine.step = watched
    train_step(run, ["digits"], streams, MetricSums(), Stopwatch())
    return seen


def test_sharpness_aware_gradients_are_those_uphill(tiny_run, tmp_path):
    runs = [
        build_run(tiny_run(tmp_path / name, step=dict(type=name), **UNMERGED), "none")
        for name in ("plain", "sharpness_aware")
    ]
    batch = next(iter(runs[0].streams["digits"])).to("cpu")
    plain, ours = (one_step(run, batch) for run in runs)
    norm = torch.stack([grad.norm() for _, grad in plain.values()]).norm()
    model = build_run(tiny_run(tmp_path / "third", **UNMERGED), "none").engine.module
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.05 * plain[name][1] / norm)
    model.train()(batch, runs[0].procedure.spec(0)).loss.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name][1], weight.grad, atol=1e-6, rtol=1e-4)
        assert torch.equal(ours[name][0], plain[name][0]), "the weights are back where they were"
    assert not torch.allclose(*(seen["backbone.norm.weight"][1] for seen in (plain, ours)), atol=1e-6)


@pytest.mark.parametrize("name", ["plain", *OWN])
def test_what_is_not_a_number_leaves_the_model_as_it_was(name, tiny_run):
    run = build_run(tiny_run(step=dict(type=name), merging=CONTINUOUS), "none")
    batch, before = next(iter(run.streams["digits"])).to("cpu"), run.engine.state_tensors()
    batch = replace(batch, images=torch.full_like(batch.images, torch.nan))
    norm = train_step(run, ["digits"], {"digits": repeat(batch)}, MetricSums(), Stopwatch())
    after = run.engine.state_tensors()
    assert not norm.isfinite() and run.nonfinite[0] == 1
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_a_step_of_the_optimizer_waits_for_the_data(tiny_run, monkeypatch):
    """Where the storage fails, what was learned of the step could not be taken back."""

    def hasty(work):
        micro = next(work.micro_batches)
        work.backward(micro, work.forward(micro), last=True)
        return work.step()

    run = build_run(tiny_run(engine=dict(accumulation=2)), "none")
    monkeypatch.setattr(
        run, "procedure", type("Hasty", (), {"spec": run.procedure.spec, "__call__": staticmethod(hasty)})()
    )
    streams = {name: iter(stream) for name, stream in run.streams.items()}
    with pytest.raises(AssertionError, match="takes all micro-batches"):
        train_step(run, ["digits", "digits"], streams, MetricSums(), Stopwatch())
