"""A head with TokenMixup: what its loss is, when it mixes, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import clips, images, tiny_video_vit, tiny_vit
from tiny_lemevit import tiny_section
from tinyrun import tiny_plain
from torch.nn import functional as F

from pipeline.config.load import from_plain
from pipeline.data.targets import ClassificationTargets, ClipTargets, MultiLabelTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec
from pipeline.model import TASKS, MultiTaskModel, build_model
from pipeline.objectives import OBJECTIVES
from pipeline.plan.checks import mistakes_of
from pipeline.plan.facts import ModelFacts
from pipeline.train.loop import train

CLASSES = 5
ACROSS = dict(layer=0, easy=100.0, margin=0.0, weight=0.5)
WITHIN = dict(layer=1, keep=3)
BOTH = dict(horizontal=ACROSS, vertical=WITHIN)


def model(kind="classification", options=BOTH, prefix="class token", reduction=(0, 8, 8), **more):
    made = tiny_vit("dtem", prefix=prefix, reduction=list(reduction), **more)
    for block in made.blocks:  # attention that is not even
        block.get_parameter("attn.qkv.weight").data *= 8
    task = TASKS.build(kind, made, num_classes=CLASSES, token_mixup=options)
    for name, parameter in task.named_parameters():
        if "head" in name or "score" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return MultiTaskModel(made, {"animals": task}, OBJECTIVES.build("supervised"))


def batch(size=6, labels=None):
    labels = torch.arange(size) % CLASSES if labels is None else labels
    return Batch("animals", images(size), ClassificationTargets(labels))


def shared_out(size=6):
    """Labels [B, K] as mixup or cutmix leave them."""
    own = F.one_hot(torch.arange(size) % CLASSES, CLASSES).float()
    return 0.7 * own + 0.3 * own.flip(0)


@pytest.mark.parametrize("prefix", ["class token", "no prefix, average pooling"])
@pytest.mark.parametrize("labels", [None, shared_out()], ids=["classes", "behind cutmix"])
def test_the_loss_is_that_of_labels_by_saliency_and_of_the_small_head(prefix, labels):
    trained = model(prefix=prefix).train()
    given, task = batch(labels=labels), trained.tasks["animals"]
    encoded = trained.encode_batch(given, taps=[0])
    mix = encoded.mix
    whole = F.one_hot(given.targets.labels, CLASSES).float() if labels is None else labels
    share = mix.share[:, None]
    target = (1 - share) * whole + share * whole[mix.partner]
    assert (share > 0).any()
    torch.testing.assert_close(target.sum(1), torch.ones(len(target)))
    own = F.cross_entropy(task.logits(encoded), target)
    output = trained(given)
    torch.testing.assert_close(output.loss, own + 0.5 * mix.difficulty.mean())
    count = output.logs["score_loss"][1]
    assert count == 6 and output.logs["mixed_images"][0] == (mix.share > 0).sum()
    torch.testing.assert_close(output.logs["mixed_patches"][0], mix.replaced.sum())


def test_the_small_head_reads_the_state_before_it_is_mixed():
    trained = model(options=dict(horizontal=ACROSS)).train()
    given, task = batch(), trained.tasks["animals"]
    plain = trained.encode("animals", given.images, taps=[0])
    wanted = F.cross_entropy(task.token_mixup.score(plain.taps[0].tokens[:, 0]), given.targets.labels)
    torch.testing.assert_close(trained.encode_batch(given).mix.difficulty.mean(), wanted)


@pytest.mark.parametrize("detach", [False, True])
def test_the_small_head_learns_where_no_image_is_easy_and_the_backbone_where_it_may(detach):
    across = ACROSS | dict(easy=0.0, detach=detach)
    trained, given = model(options=dict(horizontal=across)).train(), batch()
    output = trained(given)
    assert not output.logs["mixed_images"][0].any()
    trained.tasks["animals"].token_mixing = None
    plain = trained(given)
    torch.testing.assert_close(output.predictions, plain.predictions, atol=0, rtol=0)
    small = output.loss - plain.loss
    weight = trained.backbone.blocks[0].get_parameter("mlp.fc1.weight")
    score = trained.tasks["animals"].token_mixup.score.weight
    reached = torch.autograd.grad(output.loss, [score, weight])
    assert small > 0 and reached[0].any()
    whole = torch.autograd.grad(plain.loss, weight)[0]
    assert torch.allclose(reached[1], whole, atol=1e-6) == detach


def test_evaluation_never_mixes():
    trained, given = model(), batch()
    mixed = trained.train()(given)
    assert mixed.logs["mixed_images"][0] > 0
    trained.eval()
    assert trained.encode_batch(given).mix is None
    plain = trained.encode("animals", given.images)
    found = trained.tasks["animals"].infer(trained.encoder("animals"), given)
    expected = trained.tasks["animals"].logits(
        trained.encode("animals", given.images, relaxed=False, training=False)
    )
    assert torch.equal(found, expected) and plain.mix is None


def test_images_of_several_classes_are_mixed_too():
    labels = (torch.arange(6)[:, None] + 1 >> torch.arange(CLASSES) & 1).float()
    given = replace(batch(), targets=MultiLabelTargets(labels))
    trained = model("multi_label").train()
    encoded = trained.encode_batch(given)
    share = encoded.mix.share[:, None]
    target = (1 - share) * labels + share * labels[encoded.mix.partner]
    logits = trained.tasks["animals"].logits(encoded)
    expected = F.binary_cross_entropy_with_logits(logits, target) + 0.5 * encoded.mix.difficulty.mean()
    torch.testing.assert_close(trained(given).loss, expected)


def test_clips_are_mixed_too():
    made = tiny_video_vit("none", reduction=0)
    task = TASKS.build("video_classification", made, num_classes=CLASSES, token_mixup=BOTH)
    trained = MultiTaskModel(made, {"animals": task}, OBJECTIVES.build("supervised")).train()
    output = trained(Batch("animals", clips(4), ClipTargets(torch.arange(4))))
    assert output.loss.isfinite() and output.logs["mixed_images"][0] > 0


@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_recomputed_blocks_have_the_same_gradients(drop_path):
    trained, given = model(drop_path=drop_path).train(), batch()
    found = []
    for checkpointing in (False, True):
        trained.backbone.grad_checkpointing = checkpointing
        torch.manual_seed(3)
        weights = [weight for weight in trained.parameters() if weight.requires_grad]
        found.append(torch.autograd.grad(trained(given, StepSpec()).loss, weights, allow_unused=True))
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


def test_an_image_that_is_not_finite_stops_nothing():
    given = batch()
    given.images[2] = float("nan")
    assert not model().train()(given).loss.isfinite()


def mixing_plain(digits, output, options=BOTH, **sections):
    sections = dict(merging=dict(policy="dtem", reduction=[0, 2, 2])) | sections
    plain = tiny_plain(digits, output, **sections)
    plain["tasks"]["digits"]["head"]["token_mixup"] = options
    return plain


def test_a_run_trains_and_goes_on_exactly(digits, tmp_path):
    sections = dict(
        augment=dict(cutmix=1.0), train=dict(steps=4, log_every=1, save_every=2, keep_checkpoints=5)
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(from_plain(mixing_plain(digits, whole, **sections)))
    train(
        from_plain(mixing_plain(digits, parts, **sections)),
        resume=str(whole / "checkpoints/step_00000002"),
    )
    lines, again = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, parts)
    )
    mixed = [line["digits/mixed_images"] for line in lines if "digits/mixed_images" in line]
    assert len(mixed) == 4 and max(mixed) > 0
    found = [line["digits/loss"] for line in again if "digits/loss" in line]
    assert found == [line["digits/loss"] for line in lines if "digits/loss" in line][2:]


REFUSED = {
    "nothing": ({}, {}, "token_mixup is {}; give horizontal"),
    "another kind": (dict(diagonal=dict(layer=0)), {}, "give horizontal=dict"),
    "no layer": (dict(horizontal={}), {}, "token_mixup.horizontal has no layer"),
    "another option": (
        dict(vertical=WITHIN | dict(kappa=3)),
        {},
        "token_mixup.vertical has no option 'kappa'",
    ),
    "a margin": (dict(horizontal=ACROSS | dict(margin=-1.0)), {}, "margin -1.0"),
    "a weight": (dict(horizontal=ACROSS | dict(weight=0)), {}, "a weight above 0"),
    "kept tokens": (dict(vertical=WITHIN | dict(keep=0)), {}, "keep is 0"),
    "the last block": (
        dict(horizontal=ACROSS | dict(layer=2)),
        {},
        "horizontal.layer is 2; give a block from 0 to 1",
    ),
    "the first block": (
        dict(vertical=WITHIN | dict(layer=0)),
        {},
        "vertical.layer is 0; give a block from 1 to 2",
    ),
    "merges before": (
        dict(horizontal=ACROSS),
        dict(merging=dict(policy="dtem", reduction=2)),
        "tasks.digits: token_mixup mixes tokens that have not merged, and block 0 merges",
    ),
    "a range of reductions": (
        dict(horizontal=ACROSS),
        dict(train=dict(mode="joint", steps=2, reduction_range=[0, 2])),
        "block 0 merges",
    ),
    "several passes": (
        BOTH,
        dict(objective=dict(type="distill")),
        "tasks.digits: head.token_mixup mixes images.*objective 'distill'.*give objective.type='supervised'",
    ),
    "labels that follow tokens": (
        BOTH,
        dict(augment=dict(cutmix=1.0, mix_labels="tokens")),
        "give data.augment.mix_labels='area'",
    ),
    "another backbone": (
        BOTH,
        dict(
            backbone=tiny_section(),
            merging=dict(policy="none", reduction=0),
            train=dict(mode="backbone", steps=2),
        ),
        "LeMeViT has others",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_name_before_the_start(case, digits, tmp_path):
    options, sections, message = REFUSED[case]
    plain = mixing_plain(digits, tmp_path / "run", options, **sections)
    with pytest.raises(ConfigError, match=message):
        build_model(from_plain(plain))
    assert not (tmp_path / "run").exists()


def test_rotary_positions_are_refused_where_tokens_of_other_blocks_are_attended_to():
    made = tiny_vit("none", reduction=0, prefix="eva02: rotary positions")
    with pytest.raises(ConfigError, match="the positions of this backbone are rotary; leave vertical out"):
        TASKS.build("classification", made, num_classes=3, token_mixup=dict(vertical=WITHIN))
    TASKS.build("classification", made, num_classes=3, token_mixup=dict(horizontal=ACROSS))


def test_a_head_without_labels_of_images_has_no_such_option():
    with pytest.raises(ConfigError, match="task 'captioning'.*token_mixup"):
        TASKS.check("captioning", tiny_vit("none", reduction=0), model="m", tokenizer={}, token_mixup=BOTH)


def test_a_compiled_run_is_refused(digits, tmp_path):
    plain = mixing_plain(digits, tmp_path / "run", engine=dict(type="local", compile="blocks"))
    facts = ModelFacts(patch=(8, 8), depth=3, num_prefix=1, grid=(4, 4))
    (found,) = [text for text in mistakes_of(from_plain(plain), 1, facts) if "token_mixup" in text]
    assert "tasks.digits.head.token_mixup mixes tokens between blocks" in found and "compile='none'" in found
