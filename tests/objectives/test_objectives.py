"""Objectives: the task's own loss, and agreement with the unmerged model."""

import pytest
import torch
from segheads import CLASSES, LINEAR
from tiny import IMG, images, tiny_vit

from pipeline.data.targets import ClassificationTargets, MaskTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from pipeline.parts import BASE, HEAD
from tasks.classification import ClassificationTask
from tasks.segmentation import SegmentationTask


def model(objective, reduction=8, pool=None, **options):
    backbone = tiny_vit("dtem", reduction=reduction)
    return MultiTaskModel(
        backbone,
        {"animals": ClassificationTask(backbone, num_classes=10, pool=pool)},
        OBJECTIVES.build(objective, **options),
    )


def batch(size=4):
    return Batch("animals", images(size), ClassificationTargets(torch.arange(size)))


def test_the_supervised_loss_is_that_of_the_task():
    trained = model("supervised").train()
    torch.testing.assert_close(trained(batch()).loss, trained.predict(batch()).loss)


def test_distillation_finds_nothing_to_change_in_an_unmerged_model():
    trained = model("distill", reduction=0).eval()
    output = trained(batch())
    torch.testing.assert_close(output.loss, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert output.logs["distill"][1] == 4


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_divergence_from_the_unmerged_model_held_fixed(temperature):
    trained = model("distill", temperature=temperature, weight=0.75).train()
    parameters = [
        parameter for name, parameter in trained.named_parameters() if "blocks.2.metric" not in name
    ]
    with torch.no_grad():
        trained.tasks["animals"].head.weight.normal_()
        teacher = trained.predict(batch(), reduction=0, relaxed=False).predictions
    student = trained.predict(batch())
    p, q = (torch.softmax(logits / temperature, dim=1) for logits in (teacher, student.predictions))
    divergence = (p * (p / q).log()).sum(1).mean() * temperature**2
    expected, loss = 0.75 * divergence + 0.25 * student.loss, trained(batch()).loss
    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert (got - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6


@pytest.mark.parametrize("options", [{"weight": 0}, {"weight": 1.5}, {"temperature": 0}, {"wieght": 1}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError):
        OBJECTIVES.build("distill", **options)


@pytest.mark.parametrize(
    ("reduction", "pool", "draw", "priced"),
    [
        ([4, 4, 4], "token", 0.0, [0, 1]),
        ([4, 4, 4], "token", 0.99, [1]),  # patches behind the last attention reach no class token
        ([4, 4, 4], "avg", 0.99, [2]),
        ([4, 0, 4], "avg", 0.0, [0, 1, 2]),
        ([4, 0, 4], "avg", 0.5, [2]),
        ([4, 0, 0], "avg", 0.99, [0, 1, 2]),
        ([0, 0, 4], "token", 0.99, [1]),  # what merges has no price
        (0, "avg", 0.99, [2]),
    ],
)
@pytest.mark.parametrize("pairs", ["first", "merged"])
def test_merge_cost_prices_the_drawn_block_and_those_behind_it(reduction, pool, draw, priced, pairs):
    trained = model("merge_cost", reduction, pool, pairs=pairs).train()
    loss = trained(batch(), StepSpec(draw=draw)).loss
    grads = torch.autograd.grad(
        loss, [block.metric.weight for block in trained.backbone.blocks], allow_unused=True
    )
    assert [i for i, grad in enumerate(grads) if grad is not None and grad.abs().max() > 0] == priced
    assert [i for i, grad in enumerate(grads) if grad is not None] == priced
    assert not any(parameter.grad is not None for parameter in trained.parameters()), (
        "the backbone takes no part"
    )


def test_merge_cost_lets_the_backbone_learn_its_task_in_its_own_steps():
    trained = model("merge_cost").train()
    torch.testing.assert_close(
        trained(batch(), StepSpec(frozenset({BASE, HEAD}), relaxed=False)).loss,
        trained.predict(batch(), relaxed=False).loss,
    )


@pytest.mark.parametrize("draw", [0.0, 0.51, 0.99])
def test_merge_cost_prices_no_block_behind_the_last_that_the_head_reads(draw):
    backbone = tiny_vit("dtem")
    early = SegmentationTask(backbone, num_classes=CLASSES, decode_head=LINEAR, out_indices=[1])
    trained = MultiTaskModel(
        backbone, {"scenes": early}, OBJECTIVES.build("merge_cost", pairs="merged")
    ).train()
    mask = torch.arange(IMG).expand(4, IMG, IMG).remainder(CLASSES).to(torch.uint8)
    trained(Batch("scenes", images(4), MaskTargets(mask)), StepSpec(draw=draw)).loss.backward()
    assert [block.metric.weight.grad is not None for block in backbone.blocks] == [draw < 0.5, True, False]


def test_merge_cost_survives_running_out_of_tokens():
    trained = model("merge_cost", reduction=[8, 4, 2]).train()
    assert trained(batch(), StepSpec(draw=0.99, reduction=100)).loss.isfinite()
