"""What augmentation promises: shapes, bounds, and randomness that belongs to the sample."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.images import BatchMixer, eval_transform, train_transform
from pipeline.data.targets import ClassificationTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.rng import preserved_generators, seed_generators

CONFIGS = {
    "default": AugmentConfig(),
    "pad": AugmentConfig(pad=4),
    "resize only": AugmentConfig(crop_scale=(1, 1), hflip=0),
    "deit": AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"),
    "strong": AugmentConfig(rand_augment="rand-m10-n3-inc1", color_jitter=0.4),
    "bilinear": AugmentConfig(interpolation="bilinear"),
}


def picture(height: int = 40, width: int = 50) -> torch.Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", [(32, 32), (40, 50), (9, 200), (1, 1), (1, 100_000), (100_000, 1)])
def test_the_result_is_uint8_of_the_asked_size_whatever_comes_in(name, shape):
    transform = train_transform(CONFIGS[name], 32)
    for number in range(10):
        seed_generators(number)
        for result in (transform(picture(*shape)), eval_transform(CONFIGS[name], 32)(picture(*shape))):
            assert result.dtype == torch.uint8 and result.shape == (3, 32, 32)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_draw_belongs_to_the_address(name):
    transform = train_transform(CONFIGS[name], 24)
    views = []
    for address in (1, 2, 1):
        seed_generators("augment", address)
        views.append(transform(picture()))
        torch.rand(5), random.random()
    assert torch.equal(views[0], views[2])
    assert torch.equal(views[0], views[1]) == (name == "resize only")


def test_a_padded_crop_is_a_window_of_the_reflected_image():
    image = picture(16, 16)
    padded = torch.nn.functional.pad(image.float(), [3] * 4, mode="reflect").to(torch.uint8)
    seen = set()
    for number in range(200):
        seed_generators(number)
        crop = train_transform(AugmentConfig(pad=3, hflip=0), 16)(image)
        seen |= {
            (t, u) for t in range(7) for u in range(7) if torch.equal(padded[:, t : t + 16, u : u + 16], crop)
        }
    assert len(seen) > 40


def test_evaluation_takes_the_centre_at_the_scale_of_crop_pct():
    image = picture(32, 32)
    assert torch.equal(eval_transform(AugmentConfig(crop_pct=1.0), 32)(image), image)
    ramp = torch.arange(80, dtype=torch.uint8).expand(3, 80, 80)
    assert eval_transform(AugmentConfig(crop_pct=0.5), 40)(ramp)[0, 0].tolist() == list(range(20, 60))


def test_an_unreadable_rand_augment_is_a_config_error():
    with pytest.raises(ConfigError, match="rand-m9-mstd0.5-inc1"):
        train_transform(AugmentConfig(rand_augment="strong"), 32)


def batch(size: int = 6, num_classes: int = 5) -> Batch:
    images = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch("t", images, ClassificationTargets(torch.arange(size) % num_classes), tuple("abcdef"))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_labels_sum_to_one_and_the_draw_belongs_to_the_step(mixup, cutmix):
    mixer = BatchMixer(AugmentConfig(mixup=mixup, cutmix=cutmix), 5)
    torch.manual_seed(3)
    mixed = [mixer(batch(), 7, step) for step in (1, 2, 1)]
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1)), "the run's own generator moved"
    assert torch.equal(mixed[0].images, mixed[2].images) and not torch.equal(mixed[0].images, mixed[1].images)
    for one in mixed:
        assert one.targets.labels.shape == (6, 5) and one.targets.labels.dtype == torch.float32
        torch.testing.assert_close(one.targets.labels.sum(1), torch.ones(6))
        assert one.keys == batch().keys


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_labels_say_what_the_pixels_hold(mixup, cutmix):
    """Of pictures of one grey each, of a class of its own: a mixture's mean grey is its labels' mean. Where
    both are on, both are drawn."""
    greys = torch.tensor([1.0, -2.0, 4.0, 8.0, -16.0])
    plain = Batch(
        "t",
        greys.view(5, 1, 1, 1).repeat(1, 3, 9, 12),
        ClassificationTargets(torch.arange(5)),
        tuple("abcde"),
    )
    mixer, patched = BatchMixer(AugmentConfig(mixup=mixup, cutmix=cutmix), 5), []
    for step in range(30):
        mixed = mixer(plain, 7, step)
        torch.testing.assert_close(mixed.images.mean((1, 2, 3)), mixed.targets.labels @ greys)
        if not torch.equal(mixed.images, plain.images):
            patched.append(bool((mixed.images.std((1, 2, 3)) > 1e-3).any()))
    assert len(patched) > 20 and set(patched) == {kind for kind, on in ((False, mixup), (True, cutmix)) if on}


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("views", [2, 3])
def test_a_view_is_mixed_with_a_view_of_another_sample(mixup, cutmix, views):
    """Of three samples of one grey each: every view keeps the same share of its own class."""
    greys, own = torch.tensor([1.0, -2.0, 4.0]), torch.arange(3).repeat_interleave(views)
    pictures = greys[own].view(-1, 1, 1, 1).repeat(1, 3, 9, 12)
    plain = Batch("t", pictures, ClassificationTargets(own), tuple(map(str, own.tolist())), views=views)
    mixer, shares = BatchMixer(AugmentConfig(mixup=mixup, cutmix=cutmix), 3), set()
    for step in range(10):
        mixed = mixer(plain, 7, step)
        assert (mixed.views, mixed.keys) == (views, plain.keys)
        torch.testing.assert_close(mixed.images.mean((1, 2, 3)), mixed.targets.labels @ greys)
        (share,) = set(mixed.targets.labels.gather(1, own[:, None]).flatten().tolist())
        shares.add(share)
    assert len(shares) > 5 and min(shares) < 1


def test_a_batch_is_mixed_with_its_probability_and_by_what_the_switch_says():
    """Labels of a batch that is spared stay numbers."""
    kinds = Counter()
    for switch in (0.0, 0.2):
        augment = AugmentConfig(mixup=1.0, cutmix=1.0, mix_prob=0.5, mix_switch=switch)
        mixer = BatchMixer(augment, 5)
        flat = replace(batch(), images=torch.arange(6.0).view(6, 1, 1, 1).repeat(1, 3, 8, 8))
        for step in range(200):
            mixed = mixer(flat, 7, step)
            if mixed.targets.labels.dtype == torch.int64:
                assert torch.equal(mixed.images, flat.images)
                kinds[switch, "spared"] += 1
            else:
                kinds[switch, "cutmix" if (mixed.images.std((1, 2, 3)) > 1e-3).any() else "other"] += 1
    assert all(70 < kinds[switch, "spared"] < 130 for switch in (0.0, 0.2))
    assert kinds[0.0, "cutmix"] == 0 and 8 < kinds[0.2, "cutmix"] < 40


def test_mixing_rests_after_its_epochs():
    mixer = BatchMixer(AugmentConfig(mixup=1.0, mix_epochs=2.5), 5)
    assert [mixer.rests(epochs) for epochs in (0, 2.4, 2.5, 9)] == [False, False, True, True]
    assert not BatchMixer(AugmentConfig(mixup=1.0), 5).rests(1e9)


def test_without_mixing_the_batch_is_the_same():
    one = batch()
    assert BatchMixer(AugmentConfig(), 5)(one, 7, 1) is one


def test_generators_are_put_back_also_after_an_error():
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(1), random.random()
    torch.manual_seed(0)
    random.seed(0)
    with pytest.raises(ZeroDivisionError), preserved_generators():
        seed_generators("x")
        raise ZeroDivisionError
    assert (torch.rand(1), random.random()) == expected


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_a_crop_need_not_be_square(name, size):
    transform, evaluate = train_transform(CONFIGS[name], size), eval_transform(CONFIGS[name], size)
    for shape in ((40, 50), (24, 40), (9, 200), (1, 1)):
        seed_generators(name)
        assert transform(picture(*shape)).shape == evaluate(picture(*shape)).shape == (3, *size)


def test_evaluation_covers_a_crop_of_another_aspect_without_stretching():
    ramp = torch.arange(80, dtype=torch.uint8).expand(3, 80, 80)
    tall = eval_transform(AugmentConfig(crop_pct=1.0), (80, 40))(ramp)
    assert tall[0, 0].tolist() == list(range(20, 60)), (
        "the height decides, and the middle of the width is taken"
    )
