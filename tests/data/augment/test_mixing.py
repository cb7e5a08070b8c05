"""What mixup and cutmix promise: labels say what pixels hold, pairs are of different samples, the draw
belongs to the step, and all of it is timm's."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.data.mixup import Mixup

from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.mixing import BatchMixer
from pipeline.data.targets import ClassificationTargets, MultiLabelTargets
from pipeline.interfaces import Batch
from pipeline.rng import seed_generators

ALPHAS = pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])


def batch(size: int = 6, num_classes: int = 5) -> Batch:
    images = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch("t", images, ClassificationTargets(torch.arange(size) % num_classes), tuple("abcdef"))


def mixer(num_classes: int, reads: type = ClassificationTargets, **augment: Any) -> BatchMixer:
    return BatchMixer(AugmentConfig(**augment), num_classes, reads)


@ALPHAS
def test_mixed_labels_sum_to_one_and_the_draw_belongs_to_the_step(mixup, cutmix):
    mix = mixer(5, mixup=mixup, cutmix=cutmix)
    torch.manual_seed(3)
    given = batch()
    mixed = [mix(given, 7, step) for step in (1, 2, 1)]
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1)), "the run's own generator moved"
    assert torch.equal(given.images, batch().images), "the given batch stays as it was"
    assert torch.equal(mixed[0].images, mixed[2].images) and not torch.equal(mixed[0].images, mixed[1].images)
    for one in mixed:
        assert one.targets.labels.shape == (6, 5) and one.targets.labels.dtype == torch.float32
        torch.testing.assert_close(one.targets.labels.sum(1), torch.ones(6))
        assert one.keys == batch().keys


@ALPHAS
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_labels_say_what_the_pixels_hold_and_no_sample_is_mixed_with_itself(mixup, cutmix, views, mode):
    """Of four samples of one grey each: a mixture's mean grey is its labels' mean. Where both are on, both
    are drawn. Of several views, each is mixed with one of another sample."""
    greys, own = torch.tensor([1.0, -2.0, 4.0, 8.0]), torch.arange(4).repeat_interleave(views)
    pictures = greys[own].view(-1, 1, 1, 1).repeat(1, 3, 9, 12)
    plain = Batch("t", pictures, ClassificationTargets(own), tuple(map(str, own.tolist())), views=views)
    mix, kinds, least = mixer(4, mixup=mixup, cutmix=cutmix, mix_mode=mode), set(), 1.0
    for step in range(20):
        mixed = mix(plain, 7, step)
        assert (mixed.views, mixed.keys) == (views, plain.keys)
        torch.testing.assert_close(mixed.images.mean((1, 2, 3)), mixed.targets.labels @ greys)
        least = min(least, float(mixed.targets.labels.gather(1, own[:, None]).min()))
        for image, before in zip(mixed.images, plain.images, strict=True):
            kinds |= set() if torch.equal(image, before) else {bool(image.std() > 1e-3)}
    assert kinds == {kind for kind, on in ((False, mixup), (True, cutmix)) if on}
    assert least < 0.5


def test_a_batch_is_mixed_with_its_probability_and_by_what_the_switch_says():
    kinds = Counter()
    flat = replace(batch(), images=torch.arange(6.0).view(6, 1, 1, 1).repeat(1, 3, 8, 8))
    for switch in (0.0, 0.2):
        mix = mixer(5, mixup=1.0, cutmix=1.0, mix_prob=0.5, mix_switch=switch)
        for step in range(200):
            mixed = mix(flat, 7, step)
            if torch.equal(mixed.images, flat.images):
                kinds[switch, "spared"] += 1
            else:
                kinds[switch, "cutmix" if (mixed.images.std((1, 2, 3)) > 1e-3).any() else "other"] += 1
    assert all(70 < kinds[switch, "spared"] < 140 for switch in (0.0, 0.2))
    assert kinds[0.0, "cutmix"] == 0 and 8 < kinds[0.2, "cutmix"] < 40


def test_mixing_rests_after_its_epochs():
    mix = mixer(5, mixup=1.0, mix_epochs=2.5)
    assert [mix.rests(epochs) for epochs in (0, 2.4, 2.5, 9)] == [False, False, True, True]
    assert not mixer(5, mixup=1.0).rests(1e9)


def test_without_mixing_the_batch_is_the_same():
    one = batch()
    assert mixer(5)(one, 7, 1) is one


SETTINGS: dict[str, dict[str, Any]] = {
    "mixup": dict(mixup=0.8),
    "cutmix": dict(cutmix=1.0),
    "both": dict(mixup=0.8, cutmix=1.0, mix_prob=0.8, mix_switch=0.3),
    "minmax": dict(cutmix_minmax=(0.2, 0.8)),
    "minmax and mixup": dict(mixup=0.4, cutmix_minmax=(0.3, 0.9), mix_prob=0.9),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("several", [False, True], ids=["one class", "several"])
def test_images_and_labels_are_those_of_timms_mixup(name, mode, several):
    """On the same draws, and with the smoothing that a task's loss does afterwards."""
    own, smoothing = SETTINGS[name], 0.1
    targets = (
        MultiLabelTargets((torch.arange(30).view(6, 5) % 3 == 0).float()) if several else batch().targets
    )
    given = replace(batch(), targets=targets)
    mix = mixer(5, type(targets), mix_mode=mode, **own)
    theirs = Mixup(
        mixup_alpha=own.get("mixup", 0.0),
        cutmix_alpha=own.get("cutmix", 0.0),
        cutmix_minmax=own.get("cutmix_minmax"),
        prob=own.get("mix_prob", 1.0),
        switch_prob=own.get("mix_switch", 0.5),
        mode=mode,
        label_smoothing=smoothing,
        num_classes=5,
        multi_label=several,
    )
    for step in range(12):
        mixed = mix(given, 7, step)
        seed_generators(7, "mix", step)
        images, labels = theirs(given.images.clone(), targets.labels)
        assert torch.equal(mixed.images, images)
        ground = 0.5 if several else 1 / 5
        smoothed = mixed.targets.labels * (1 - smoothing) + smoothing * ground
        torch.testing.assert_close(smoothed, labels)
