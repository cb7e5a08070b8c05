"""A head whose labels follow the tokens (TL-Align) learns what the tokens that it reads are of."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from tiny import images, tiny_vit
from tiny_lemevit import tiny_section
from tinyrun import tiny_plain
from torch import nn
from torch.nn import functional as F

from pipeline.backbone.attention_pool import pool_by_attention
from pipeline.backbone.build import model_facts
from pipeline.backbone.partner import PARTNER, partner_of
from pipeline.config.load import from_plain
from pipeline.data.augment.patch_mixing import mixed_labels
from pipeline.data.targets import ClassificationTargets, Mixture, MultiLabelTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec, Task
from pipeline.model import TASKS, MultiTaskModel, build_model
from pipeline.objectives import OBJECTIVES
from pipeline.plan.resolve import resolve
from pipeline.token_state import TokenState
from pipeline.train.loop import train

CLASSES = 5
HEADS = {
    "class token": ("class token", {}),
    "average": ("class token", {"pool": "avg"}),
    "average, no prefix": ("no prefix, average pooling", {}),
    "distilled": ("distilled", {}),
    "attention pooling": ("attention pooling", {}),
}


def model(
    head="class token", variant="tome", reduction=8, kind="classification", objective="supervised", **options
):
    prefix, own = HEADS[head]
    backbone = tiny_vit(variant, prefix=prefix, reduction=reduction)
    task = TASKS.build(kind, backbone, num_classes=CLASSES, **own, **options)
    for block in backbone.blocks:  # attention that is not even
        block.get_parameter("attn.qkv.weight").data *= 8
    for name, parameter in task.named_parameters():
        if "head" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return MultiTaskModel(backbone, {"animals": task}, OBJECTIVES.build(objective))


def batch(filled=0.25, size=4):
    """Of each image the upper part is the partner's."""
    parts = torch.zeros(size, 8, 8)
    parts[:, : round(8 * filled)] = 1
    labels = torch.arange(size) % CLASSES
    area = mixed_labels(labels, parts.mean((1, 2)), CLASSES)
    return Batch("animals", images(size), ClassificationTargets(area, Mixture(labels, parts)))


def by_area(given):
    return replace(given, targets=replace(given.targets, mixture=None))


@pytest.mark.parametrize("reduction", [0, 8])
@pytest.mark.parametrize("head", HEADS)
def test_where_nothing_is_mixed_the_loss_is_the_plain_one_exactly(head, reduction):
    trained, given = model(head, reduction=reduction, label_smoothing=0.1).train(), batch(0.0)
    found, plain = trained(given), trained(by_area(given))
    assert torch.equal(found.loss, plain.loss) and torch.equal(found.predictions, plain.predictions)
    assert float(found.logs["label_shift"][0]) == 0


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_that_of_the_labels_that_arrive_and_its_gradient_takes_them_as_given(head):
    trained, given = model(head).train(), batch()
    task = trained.tasks["animals"]
    encoded = trained.encode_batch(given)
    share = read_by_hand(task, encoded.final)
    assert (share - 0.25).abs().max() > 1e-4 and not share.requires_grad
    own = given.targets.mixture.labels
    target = F.one_hot(own, CLASSES) * (1 - share[:, None]) + F.one_hot(own.flip(0), CLASSES) * share[:, None]
    expected = F.cross_entropy(task.logits(encoded), target)
    output = trained(given)
    torch.testing.assert_close(output.loss, expected)
    weights = list(trained.parameters())
    wanted, found = (
        torch.autograd.grad(loss, weights, allow_unused=True) for loss in (expected, output.loss)
    )
    apart = [
        (own - other).square().sum() for own, other in zip(found, wanted, strict=True) if own is not None
    ]
    assert sum(apart) < 1e-6 * sum(own.square().sum() for own in wanted if own is not None)
    total, count = output.logs["label_shift"]
    torch.testing.assert_close(total / count, (share - 0.25).abs().mean())


def read_by_hand(task, state: TokenState) -> torch.Tensor:
    partner, prefix = partner_of(state), state.num_prefix
    if task.head_dist is not None:
        return partner[:, :2].mean(1)
    if task.pool == "token":
        return partner[:, 0]
    size, partner = state.patch_size.detach(), partner[:, prefix:]
    if task.attn_pool is None:
        return (partner * size).sum(1) / size.sum(1)
    return attention_pooled(task.attn_pool, state, partner)


def attention_pooled(module, state, numbers):
    """By timm's own module, whose values are the numbers, and behind whose attention is nothing."""
    own = copy.deepcopy(module)
    own.proj, own.mlp = nn.Identity(), None

    def with_numbers(layer, given, made):
        keys, values = made.chunk(2, dim=-1)
        return torch.cat([keys, numbers[..., None].expand_as(values)], dim=-1)

    own.kv.register_forward_hook(with_numbers)
    with torch.no_grad():
        return pool_by_attention(own, state, with_prefix=False).mean(-1)


@pytest.mark.parametrize("objective", ["supervised", "distill", "consistency", "merge_cost"])
def test_labels_follow_the_tokens_under_every_objective(objective):
    given, spec = batch(), StepSpec(draw=0.5)
    variant = "mctf" if objective == "consistency" else "dtem"
    output = model(variant=variant, objective=objective).train()(given, spec)
    assert float(output.logs["label_shift"][0]) > 0 and output.loss.isfinite()


def test_images_of_several_classes_have_labels_that_follow_too():
    trained, given = model(kind="multi_label"), batch()
    several = torch.eye(CLASSES)[given.targets.mixture.labels] + torch.eye(CLASSES)[4]
    mixture = replace(given.targets.mixture, labels=several)
    given = replace(given, targets=MultiLabelTargets(several, mixture))
    share = partner_of(trained.encode_batch(given).final)[:, :1]
    expected = F.binary_cross_entropy_with_logits(
        trained.predict(given).predictions, several * (1 - share) + several.flip(0) * share
    )
    torch.testing.assert_close(trained(given).loss, expected)


def test_an_objective_that_encodes_without_the_labels_is_told():
    trained, given = model(), batch()
    encoded = trained.encode("animals", given.images)
    assert PARTNER not in encoded.final.carried
    with pytest.raises(ConfigError, match="encode_batch"):
        trained.tasks["animals"](encoded, given)


class Unlabelled(Task):
    """A head of a user, that reads classes and says nothing of labels that follow."""

    reads = ClassificationTargets

    def __init__(self, backbone, *, num_classes):
        super().__init__()
        self.num_classes = num_classes


def aligned(digits, output, **sections):
    return tiny_plain(digits, output, augment=dict(cutmix=1.0, mix_labels="tokens"), **sections)


def test_a_task_whose_labels_cannot_follow_is_refused_by_name_before_the_start(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS._factories, "unlabelled", Unlabelled)
    plain = aligned(digits, tmp_path / "run")
    plain["tasks"]["digits"] |= dict(type="unlabelled", head=dict(num_classes=10))
    with pytest.raises(
        ConfigError, match="tasks.digits: data.augment.mix_labels.*Unlabelled has no labels of"
    ):
        build_model(from_plain(plain))


def test_a_run_trains_on_them_and_goes_on_exactly(digits, tmp_path):
    options = dict(steps=4, log_every=1, save_every=2, keep_checkpoints=5)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(from_plain(aligned(digits, whole, train=options)))
    train(from_plain(aligned(digits, parts, train=options)), resume=str(whole / "checkpoints/step_00000002"))
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    shifts = [line["digits/label_shift"] for line in lines if "digits/label_shift" in line]
    assert len(shifts) == 4 and 0 < max(shifts) < 1
    again = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    found = [line["digits/loss"] for line in again if "digits/loss" in line]
    assert found == [line["digits/loss"] for line in lines if "digits/loss" in line][2:]


def test_a_backbone_with_whose_tokens_nothing_travels_is_refused_before_the_start(digits, tmp_path):
    sections = dict(merging=dict(policy="none", reduction=0), train=dict(mode="backbone"))
    plain = aligned(digits, tmp_path / "run", **sections) | dict(backbone=tiny_section())
    config = from_plain(plain)
    with pytest.raises(ConfigError, match="tasks.digits.*labels do not follow the tokens of 'lemevit_tiny'"):
        resolve(config, 1, model_facts(config.backbone))
