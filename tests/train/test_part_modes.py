"""What is frozen, or rests in a step, is in evaluation mode: nothing random acts in it, and its statistics
stay."""

import pytest
import torch
from tiny import images, tiny_vit
from torch import nn

from pipeline.balancing import BALANCING
from pipeline.config.schema import TrainConfig
from pipeline.data.targets import ClassificationTargets
from pipeline.interfaces import Batch
from pipeline.model import MultiTaskModel
from pipeline.modes import evaluation_mode, set_modes
from pipeline.objectives import OBJECTIVES
from pipeline.objectives.distill import divergence
from pipeline.objectives.merge_cost import drawn_log_likelihood
from pipeline.parts import TRAINED, set_trainable
from pipeline.train.steps import STEPS
from tasks.classification import ClassificationTask

PHASES = [(mode, step) for mode in TRAINED for step in range(2 if mode == "end_to_end" else 1)]
"""Mode, and a step of each of its phases: end_to_end trains the embeddings in every second one."""
BASE_LEARNS = {("backbone", 0), ("joint", 0), ("end_to_end", 0)}
HEAD_LEARNS = BASE_LEARNS | {("heads", 0)}
DROPOUT = {"proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "pos_drop_rate": 0.3}


def model_in(mode, step, *, objective="supervised", frozen=(), **options):
    """As a run has it in a step: heads `a` and `b` with dropout and a batch norm, and everything that timm
    can drop."""
    backbone = tiny_vit("dtem", drop_path=0.5, timm_options=DROPOUT, **options)
    heads = {name: ClassificationTask(backbone, num_classes=10, dropout=0.5) for name in "ab"}
    for head in heads.values():
        head.fc_norm = NormOfBatches(backbone.embed_dim)
        nn.init.normal_(head.head.weight)
    balancing = BALANCING.build("uncertainty", dict.fromkeys(heads, 1.0))
    model = MultiTaskModel(backbone, heads, OBJECTIVES.build(objective), balancing=balancing)
    set_trainable(model, mode, frozen)
    procedure = STEPS.build(
        "alternate" if mode == "end_to_end" else "plain", TrainConfig(mode=mode, steps=2, alternate_period=2)
    )
    set_modes(model, procedure.spec(step).trains)
    return model


class NormOfBatches(nn.BatchNorm1d):
    """Of pooled tokens [B, C]; its statistics move in training mode."""


def batch(task="a"):
    return Batch(task, images(4), ClassificationTargets(torch.arange(4)))


def random(function):
    with torch.no_grad():
        return not torch.equal(function(), function())


@pytest.mark.parametrize("mode, step", PHASES)
def test_only_what_a_step_trains_is_dropped_at_random(mode, step):
    model = model_in(mode, step)
    assert random(lambda: model.encode("a", images(4)).final.tokens) == ((mode, step) in BASE_LEARNS)
    with torch.no_grad():
        encoded = model.backbone(images(4), relaxed=False)
    assert random(lambda: model.tasks["a"](encoded, batch()).predictions) == ((mode, step) in HEAD_LEARNS)


@pytest.mark.parametrize("mode, step", PHASES)
@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_statistics_move_only_with_what_is_trained(mode, step, objective):
    model = model_in(mode, step, objective=objective)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(batch())
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert bool(moved) == ((mode, step) in HEAD_LEARNS)


@pytest.mark.parametrize("mode, step", [("modular", 0), ("end_to_end", 1)])
def test_a_frozen_network_has_one_price(mode, step):
    """What is left to chance is the label that is drawn: with the same draw, the same prices."""
    model, losses = model_in(mode, step, objective="merge_cost"), []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(model(batch()))
        assert torch.equal(losses[0].predictions, losses[-1].predictions)
    assert random(lambda: drawn_log_likelihood(model.tasks["a"].log_probs(losses[0], batch())))
    with torch.enable_grad():
        assert torch.equal(losses[0].loss, losses[1].loss)


def test_a_frozen_task_is_in_evaluation_mode_beside_one_that_learns():
    model = model_in("heads", 0, frozen=["a"])
    assert not any(part.training for part in model.tasks["a"].modules())
    assert all(part.training for part in model.tasks["b"].modules())


def test_modular_training_is_relaxed_and_counts_sizes_as_training_does():
    """Though the backbone itself is in evaluation mode."""
    model, reduction = model_in("modular", 0, proportional_attention="train"), [30, 0, 0]
    assert not model.backbone.training
    trained = model.encode("a", images(4), reduction=reduction).final
    assert trained.tokens.shape[1] == 65 and trained.num_active == 35 and trained.size.requires_grad
    hard, evaluated = (
        model.encode("a", images(4), reduction=reduction, relaxed=False, training=mode).final
        for mode in (True, False)
    )
    assert not torch.equal(hard.tokens, evaluated.tokens)
    torch.testing.assert_close(trained.tokens[:, :35], hard.tokens, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.encoder("a", reduction)(images(4)).final.tokens, evaluated.tokens)


@pytest.mark.parametrize("mode", ["modular", "joint"])
def test_the_teacher_is_the_model_in_evaluation_mode(mode):
    """Also of a model that learns; and every part is left in the mode that it was in."""
    model = model_in(mode, 0, objective="distill")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    with evaluation_mode(model):
        teacher = model.predict(batch(), reduction=0)
    torch.manual_seed(5)
    student = model.predict(batch())
    model.load_state_dict(state)
    torch.manual_seed(5)
    own, wanted = (model.tasks["a"].log_probs(output, batch()) for output in (student, teacher))
    torch.testing.assert_close(model(batch()).unweighed, divergence(own, wanted))
    assert [part.training for part in model.modules()] == modes
