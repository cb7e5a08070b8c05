"""A loop of somebody's own over a patched model: the gradients and updates of our loop."""

from dataclasses import replace
from itertools import islice

import pytest
import timm
import torch
from learner import learner
from tiny import generator
from torch import nn
from torch.nn import functional as F

import dtem
from pipeline.errors import ConfigError
from pipeline.merging.unmerge import unmerge_state
from pipeline.modes import set_modes
from pipeline.own_loop.phases import BOTH, EMBEDDINGS, OTHERS
from pipeline.rng import seed_everything
from pipeline.train.metrics import MetricSums
from pipeline.train.reporting import Stopwatch
from pipeline.train.setup import build_run
from pipeline.train.train_step import train_step

STEPS, PERIOD, LR, SMOOTHING = 6, 3, 1e-3, 0.1
MODES = {"end_to_end": "alternate", "modular": "modular", "joint": "joint"}
"""Of our configs -> of `phase_of`."""


def our_run(tiny_run, mode, objective, accumulation=1):
    """Our loop in float64, in which no choice of pairs depends on how something is rounded."""
    run = build_run(
        tiny_run(
            train=dict(mode=mode, steps=STEPS, alternate_period=PERIOD),
            objective=dict(type=objective),
            backbone=dict(drop_path=0.1),
            optim=dict(lr=LR, min_lr=LR, warmup_steps=0, weight_decay=0.0, ema_decay=0.0, clip_grad=1.0),
            engine=dict(accumulation=accumulation),
        ),
        "none",
    )
    module = run.engine.module.double()
    with torch.no_grad():
        module.tasks["digits"].head.weight.mul_(50)  # far from rounding: our losses are float32
    run.engine._optimizer.create_state(run.engine.module.parameters())
    batches = islice(run.streams["digits"], STEPS * accumulation)
    return run, [replace(own, images=own.images.double()) for own in (b.to("cpu") for b in batches)]


def their_model(run):
    """timm's model with the same weights, patched."""
    config = run.config.backbone
    model = timm.create_model(
        config.name, num_classes=10, img_size=32, drop_path_rate=config.drop_path, **config.options
    ).double()
    dtem.patch(model, "dtem", run.config.merging.reduction, learns=True)
    own = run.engine.module.state_dict()
    names = {name: name.removeprefix("backbone.").removeprefix("tasks.digits.") for name in own}
    model.load_state_dict({names[name]: tensor.clone() for name, tensor in own.items()})
    return model


def loss_of(model, objective, batch, phase, **address):
    """The loss of a user's loop: their own labels, or ours for the embeddings."""
    if objective == "distill":
        return dtem.distill(model, batch.images)
    if objective == "merge_cost" and phase.embeddings:

        def logits(output):
            """float32 as ours, for which labels are drawn."""
            return model.forward_head(unmerge_state(output.final)).float()

        return dtem.merge_cost(model, batch.images, reads=logits, prefix_alone=True, **address)
    return F.cross_entropy(model(batch.images), batch.targets.labels, label_smoothing=SMOOTHING)


def their_loop(run, batches, mode, objective, accumulation):
    model = their_model(run)
    if mode == "modular":
        optimizer = torch.optim.AdamW(dtem.embeddings_of(model), lr=LR, weight_decay=0.0)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    optimizer.param_groups[0]["betas"] = run.config.optim.betas
    for step in range(STEPS):
        phase = dtem.phase_of(step, mode, period=PERIOD)
        phase.begin(model)
        seed_everything(run.config.seed, "step", 0, step)  # drop path, and what merge_cost draws
        for micro in range(accumulation):
            batch = batches[step * accumulation + micro]
            loss = loss_of(model, objective, batch, phase, seed=run.config.seed, step=step, micro=micro)
            (loss / accumulation).backward()
        phase.end(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize(
    ("mode", "objective", "accumulation"),
    [
        ("end_to_end", "supervised", 1),
        ("end_to_end", "merge_cost", 2),
        ("modular", "merge_cost", 1),
        ("modular", "distill", 2),
        ("joint", "supervised", 1),
    ],
)
def test_a_loop_of_ones_own_updates_as_ours_does(mode, objective, accumulation, tiny_run):
    run, batches = our_run(tiny_run, mode, objective, accumulation)
    theirs = their_loop(run, batches, MODES[mode], objective, accumulation)
    start = {name: tensor.clone() for name, tensor in run.engine.module.state_dict().items()}
    streams = {"digits": iter(batches)}
    for step in range(STEPS):
        set_modes(run.engine.module, run.procedure.spec(step).trains)  # as `pipeline.train.loop` does
        train_step(run, ["digits"] * accumulation, streams, MetricSums(), Stopwatch())
    found, moved = theirs.state_dict(), set()
    for name, tensor in run.engine.module.state_dict().items():
        own = found[name.removeprefix("backbone.").removeprefix("tasks.digits.")]
        way = (tensor - start[name]).norm()
        assert (own - tensor).norm() <= 1e-3 * way, name
        if way > 0:
            moved.add(".metric." in name)
    assert moved == ({True} if mode == "modular" else {True, False})


def test_the_phases_are_a_function_of_the_step():
    assert [dtem.phase_of(step, period=3) for step in range(6)] == [OTHERS, OTHERS, EMBEDDINGS] * 2
    assert {dtem.phase_of(step, "modular") for step in range(20)} == {EMBEDDINGS}
    assert {dtem.phase_of(step, "joint") for step in range(20)} == {BOTH}
    for wrong in (dict(mode="modula"), dict(period=1)):
        with pytest.raises(ConfigError, match="give one of alternate, modular, joint"):
            dtem.phase_of(0, **wrong)


@pytest.mark.parametrize("phase", [EMBEDDINGS, OTHERS, BOTH])
def test_what_rests_has_no_dropout_no_gradient_and_no_update(phase):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=2, proj_drop_rate=0.5)
    module = nn.Sequential(dtem.patch(model, reduction=2, learns=True), nn.Linear(5, 3))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    embeddings = {id(parameter) for parameter in dtem.embeddings_of(module)}
    before = {name: own.clone() for name, own in module.named_parameters()}
    phase.begin(module)
    assert model.blocks[0].attn.proj_drop.training == model.head.training == phase.others
    module(torch.randn(2, 3, 64, 64, generator=generator(1))).square().sum().backward()
    phase.end(module)
    optimizer.step()
    for name, own in module.named_parameters():
        learns = phase.embeddings if id(own) in embeddings else phase.others
        assert torch.equal(own, before[name]) != learns, name


def test_a_head_of_ones_own_is_read():
    model = learner().model.eval()
    images = torch.randn(2, 3, 64, 64, generator=generator(2))

    def head(output):
        return model.forward_head(unmerge_state(output.final))

    assert torch.equal(dtem.distill(model, images, reads=head), dtem.distill(model, images))
    for reads in ("pooled", "patches"):
        for loss in (
            dtem.distill(model, images, reads=reads),
            dtem.merge_cost(model, images, 0, reads=reads),
        ):
            assert loss.isfinite() and loss > 0
    with pytest.raises(ConfigError, match="reads is 'logit'; give logits, pooled, patches or a function"):
        dtem.distill(model, images, reads="logit")


def test_a_model_that_is_not_patched_is_refused():
    for call in (
        lambda: dtem.merge_cost(nn.Linear(2, 2), torch.zeros(1), 0),
        lambda: dtem.phase_of(0).begin(nn.Linear(2, 2)),
    ):
        with pytest.raises(ConfigError, match="holds no patched model; give it to dtem.patch first"):
            call()


@pytest.mark.parametrize("loss", ["distill", "merge_cost"])
def test_autocast_and_accumulation_give_the_gradient_of_the_whole_batch(loss):
    """Merges in which nothing is chosen, so that rounding alone makes the difference; by norm."""

    def gradient(parts, enabled):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=2)
        dtem.patch(model, "dtem", reduction=[2, 0], learns=True, relaxation="soft", candidates=8)
        images = torch.randn(4, 3, 64, 64, generator=generator(5))
        phase = dtem.phase_of(0, "modular")
        phase.begin(model)
        for part in images.chunk(parts):
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                value = dtem.distill(model, part) if loss == "distill" else cost(model, part)
            (value / parts).backward()
        phase.end(model)
        assert all(own.grad.dtype == torch.float32 for own in dtem.embeddings_of(model))
        assert all(own.grad is None for name, own in model.named_parameters() if ".metric." not in name)
        return torch.cat([own.grad.flatten() for own in dtem.embeddings_of(model)])

    def cost(model, images):
        return dtem.merge_cost(model, images, 0, reads="pooled")

    whole = gradient(1, enabled=False)
    assert whole.norm() > 0
    assert (gradient(1, enabled=True) - whole).norm() < 0.2 * whole.norm()
    if loss == "distill":  # merge_cost draws a direction for each sample
        torch.testing.assert_close(gradient(2, enabled=False), whole, rtol=1e-3, atol=1e-7)
