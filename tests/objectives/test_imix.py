"""i-Mix: what mixed instances learn, that keys are whole, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import images, tiny_vit
from tinycoca import caption_batch, caption_model
from tinyrun import tiny_plain, tiny_tasks_plain
from torch.nn import functional as F

from pipeline.config.load import from_plain
from pipeline.data.targets import ClassificationTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec
from pipeline.model import TASKS, MultiTaskModel, build_model
from pipeline.objectives import OBJECTIVES
from pipeline.objectives.contrast import Blend, instance_loss
from pipeline.objectives.imix import IMix
from pipeline.plan.checks import mistakes_of
from pipeline.plan.facts import ModelFacts
from pipeline.train.loop import train
from tasks.captions.losses import caption_loss, contrastive_loss, normalised
from tasks.classification import ClassificationTask

SPEC = StepSpec(draw=0.37)


def logits(size=5):
    return torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("blend", [Blend(1.0, 3), Blend(0.7, 0), None], ids=["all", "own partner", "none"])
def test_what_is_not_mixed_is_plain_contrast(blend):
    own = torch.arange(5)
    for of_keys in (False, True):
        found = instance_loss(logits(), own, blend, of_keys=of_keys)
        torch.testing.assert_close(found, F.cross_entropy(logits(), own))


def test_two_instances_are_told_by_their_shares():
    given, own = logits(2), torch.arange(2)
    expected = 0.75 * F.cross_entropy(given, own) + 0.25 * F.cross_entropy(given, own.flip(0))
    torch.testing.assert_close(instance_loss(given, own, Blend(0.75, 1)), expected)


def test_captions_learn_the_labels_of_images_turned_around():
    size, blend = 6, Blend(0.8, 2)
    of_images = torch.zeros(size, size)  # how much of each caption's image is in each image
    for i in range(size):
        of_images[i, i] += 0.8
        of_images[i, (i + 2) % size] += 0.2
    image, text = (
        F.normalize(torch.randn(size, 4, generator=torch.Generator().manual_seed(seed)), dim=1)
        for seed in (1, 2)
    )
    scale = torch.tensor([7.0])
    products = scale * image @ text.mT
    expected = (F.cross_entropy(products, of_images) + F.cross_entropy(products.mT, of_images.mT)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, scale, blend=blend), expected)


def test_images_are_mixed_with_those_some_places_on():
    given = images(4)
    mixed = Blend(0.75, 1).mixed(given)
    torch.testing.assert_close(mixed, 0.75 * given + 0.25 * given[[1, 2, 3, 0]])
    assert Blend(1.0, 0).mixed(given) is given


def test_draws_are_a_function_of_the_step_and_partners_of_the_rank_too():
    made = IMix()
    drawn = [made.blend(8, 2, draw / 40, rank) for draw in range(40) for rank in (0, 1)]
    assert drawn == [made.blend(8, 2, draw / 40, rank) for draw in range(40) for rank in (0, 1)]
    assert all(0.5 <= blend.share <= 1 and blend.shift in range(2, 16, 2) for blend in drawn)
    assert all(one.share == other.share for one, other in zip(drawn[::2], drawn[1::2], strict=True))
    assert len({blend.share for blend in drawn}) == 40
    assert any(one.shift != other.shift for one, other in zip(drawn[::2], drawn[1::2], strict=True))
    assert IMix(alpha=0).blend(8, 1, 0.3, 0) == made.blend(1, 1, 0.3, 0) == Blend(1.0, 0)


def model(policy="tome", **options):
    """In float64."""
    backbone = tiny_vit(policy, reduction=8)
    task = ClassificationTask(backbone, num_classes=4)
    return MultiTaskModel(backbone, {"animals": task}, OBJECTIVES.build("i_mix", **options)).double()


def batch(size=8, views=1):
    labels = ClassificationTargets(torch.arange(size) % 4)
    return Batch("animals", images(size).double(), labels, views=views)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_loss_is_that_of_mixed_queries_among_whole_keys_and_no_label_is_read(views, alpha):
    trained, given = model(alpha=alpha, temperature=0.5).train(), batch(views=views)
    seen, keys = given.images[::views], given.images[views - 1 :: views]
    count = len(seen)
    blend = trained.objective.blend(count, 1, SPEC.draw, 0)
    assert (blend.share < 1) == (alpha > 0)

    def vectors(x):
        features = trained.tasks["animals"].image_features(trained.encode("animals", x))
        return F.normalize(trained.objective.projection(features).float(), dim=-1)

    mixed = blend.share * seen + (1 - blend.share) * seen.roll(-blend.shift, 0)
    products = vectors(mixed) @ vectors(keys).mT / 0.5
    labels = blend.share * torch.eye(count) + (1 - blend.share) * torch.eye(count).roll(-blend.shift, 0)
    output = trained(given, SPEC)
    torch.testing.assert_close(output.loss, F.cross_entropy(products, labels))
    assert output.logs["own_share"][0] / output.logs["own_share"][1] == pytest.approx(blend.share)
    assert output.logs["found"][0] == (products.argmax(1) == torch.arange(count)).sum()
    others = replace(given, targets=ClassificationTargets(given.targets.labels * 0))
    assert torch.equal(trained(others, SPEC).loss, output.loss)
    output.loss.backward()
    assert trained.objective.projection[0].weight.grad.any()
    assert all(parameter.grad is None for parameter in trained.tasks.parameters())


def test_of_a_captioner_the_contrastive_part_alone_reads_mixed_images():
    trained, given = caption_model(objective="i_mix").train(), caption_batch()
    task = trained.tasks["caption"]
    blend = trained.objective.blend(4, 1, SPEC.draw, 0)
    assert blend.share < 1 and trained.objective.projection is None
    whole = trained.encode("caption", given.images)
    mixed = task.image_tokens(trained.encode("caption", blend.mixed(given.images))).feature
    tokens = given.targets.tokens
    text = task.text_features(tokens)
    contrast = contrastive_loss(normalised(mixed), text, task.contrastive_scale(), blend=blend)
    logits = task(whole, given).predictions
    words = 2 * caption_loss(logits, tokens[:, 1:], task.special.pad)
    output = trained(given, SPEC)
    torch.testing.assert_close(output.loss, words + contrast)
    torch.testing.assert_close(output.predictions, logits)


def test_a_captioner_without_mixing_has_its_own_loss():
    plain, given = caption_model(), caption_batch()
    mixing = MultiTaskModel(plain.backbone, dict(plain.tasks.items()), OBJECTIVES.build("i_mix", alpha=0.0))
    torch.testing.assert_close(mixing.train()(given, SPEC).loss, plain.train()(given).loss)


def test_a_run_trains_on_instances_and_goes_on_exactly(digits, tmp_path):
    sections = dict(
        objective=dict(type="i_mix", options=dict(dim=8)),
        data=dict(views=2),
        train=dict(steps=4, log_every=1, save_every=2, keep_checkpoints=5),
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(from_plain(tiny_plain(digits, whole, **sections)))
    train(from_plain(tiny_plain(digits, parts, **sections)), resume=str(whole / "checkpoints/step_00000002"))
    losses = [
        [
            line["digits/loss"]
            for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if "digits/loss" in line
        ]
        for folder in (whole, parts)
    ]
    assert len(losses[0]) == 4 and losses[1] == losses[0][2:]
    probe = tiny_plain(digits, tmp_path / "probe", merging=dict(policy="none", reduction=0))
    probe["train"] = dict(mode="heads", steps=1)
    probe["backbone"]["weights"] = str(whole)
    made = build_model(from_plain(probe))
    assert made.objective.one_pass, "a linear probe is a run of mode 'heads' from the weights of the former"


FACTS = ModelFacts(patch=(8, 8), depth=3, num_prefix=1, grid=(4, 4))
MISTAKES = {
    "labels are mixed": (dict(augment=dict(mixup=0.8)), "tasks.digits.data.augment mixes images and labels"),
    "the backbone rests": (dict(train=dict(mode="heads", steps=2)), "give another mode"),
    "three views": (dict(data=dict(views=3)), "tasks.digits.data.views is 3; give 1 or 2"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_it_cannot_train_on_is_refused_before_the_start(case, digits, tmp_path):
    sections, message = MISTAKES[case]
    plain = tiny_plain(digits, tmp_path / "run", objective=dict(type="i_mix"), **sections)
    assert any(message in text for text in mistakes_of(from_plain(plain), 1, FACTS) if "i_mix" in text)


def test_tasks_without_anything_to_compare_are_named(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run", objective=dict(type="i_mix"))
    plain["tasks"] = {name: plain["tasks"][name] for name in ("digits", "captions")}
    plain["tasks"]["captions"]["head"] = plain["tasks"]["captions"]["head"] | dict(contrastive_weight=0.0)
    with pytest.raises(
        ConfigError, match="tasks.captions: objective 'i_mix' compares.*CaptioningTask does nei"
    ):
        build_model(from_plain(plain))
    serves = [name for name in TASKS.names() if OBJECTIVES.build("i_mix").refuses(TASKS.get(name)) is None]
    assert serves == ["captioning", "classification", "video_classification"]


@pytest.mark.parametrize("options", [dict(alpha=-1.0), dict(temperature=0.0), dict(dim=0)])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="i_mix: alpha"):
        OBJECTIVES.build("i_mix", **options)
