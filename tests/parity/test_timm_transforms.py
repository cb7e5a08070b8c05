"""What a classifier is trained and evaluated on equals what timm's own transforms make of the same image and
the same draws."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.transforms import RandomHorizontalFlip, v2
from torchvision.transforms.v2 import functional as F

from pipeline.config.load import load_config
from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.images import eraser, eval_transform, train_transform
from pipeline.pixels import Noise, Normalisation
from pipeline.rng import seed_generators

DEIT = Path(__file__).parents[2] / "configs" / "imagenet_deit_small_dtem_modular.py"
DEIT_ARGUMENTS = dict(
    color_jitter=0.3,
    auto_augment="rand-m9-mstd0.5-inc1",
    interpolation="bicubic",
    re_prob=0.25,
    re_mode="pixel",
)
"""Of DeiT's training command, as its transform is given them."""
SHAPES = [(60, 80), (80, 60), (75, 100), (51, 51), (67, 101), (20, 26)]


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [3, H, W], coarse and fine structure."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 200, (3, 5, 7), dtype=torch.uint8, generator=draws)
    smooth = F.resize(coarse, [height, width], interpolation=F.InterpolationMode.BICUBIC, antialias=True)
    return smooth + torch.randint(0, 56, (3, height, width), dtype=torch.uint8, generator=draws)


def off(ours: Tensor, theirs: Tensor) -> tuple[int, float]:
    """The largest and the mean difference of two uint8 pictures."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == torch.uint8
    apart = (ours.int() - theirs.int()).abs()
    return int(apart.max()), float(apart.float().mean())


@pytest.mark.parametrize("size", [45, (45, 62), (62, 45)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_evaluation_pixels_are_timms(crop_mode, crop_pct, interpolation, size):
    """Up to the rounding between Pillow and torchvision; a resize to another size is off by more than ten on
    the average."""
    options = dict(crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation)
    ours = eval_transform(AugmentConfig(**options), size)
    theirs = create_transform(size, **options, normalize=False)
    for shape in SHAPES:
        largest, mean = off(ours(picture(*shape)), theirs(F.to_pil_image(picture(*shape))))
        most = 2 if crop_mode == "center" else 6  # where one side grows and the other shrinks
        assert largest <= most and mean < 0.5, f"{shape}: {largest}, {mean}"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_training_crops_are_timms(interpolation):
    for hflip in (0.0, 1.0):
        ours = train_transform(AugmentConfig(interpolation=interpolation, hflip=hflip), 40)
        theirs = create_transform(
            40, is_training=True, color_jitter=None, interpolation=interpolation, hflip=hflip, normalize=False
        )
        for seed, shape in enumerate(SHAPES * 2):
            seed_generators(seed)
            wanted = theirs(F.to_pil_image(picture(*shape, seed)))
            seed_generators(seed)
            largest, mean = off(ours(picture(*shape, seed)), wanted)
            assert largest <= 2 and mean < 0.5, f"{shape}: {largest}, {mean}"


class Flip(RandomHorizontalFlip):
    """torchvision's, which draws from Python's generator as ours does."""

    def forward(self, img):
        return F.hflip(img) if random.random() < self.p else img


@pytest.mark.parametrize("name", ["whole", "no hue", "hue"])
def test_the_training_pipeline_is_timms_to_the_last_pixel(name):
    """On pictures of the crop's size, which the first step keeps as they are (but draws for), so that no
    resize rounds.

    whole: DeiT's own arguments, against the config that is named after it. The others: without RandAugment,
    with jitter.
    """
    jitter = {"no hue": 0.4, "hue": (0.4, 0.3, 0.2, 0.1)}.get(name)
    deit = replace(load_config(DEIT).tasks["imagenet"].data.augment, crop_scale=(0.99999, 1.0))
    config = deit if jitter is None else replace(deit, rand_augment=None, color_jitter=jitter)
    arguments = DEIT_ARGUMENTS | ({} if jitter is None else dict(auto_augment=None, color_jitter=jitter))
    theirs = create_transform(32, is_training=True, scale=config.crop_scale, **arguments)
    theirs.transforms[1] = Flip(theirs.transforms[1].p)
    ours, erase = train_transform(config, 32), eraser(config)
    plain = Normalisation(config.preprocessing.mean, config.preprocessing.std)
    changed = 0
    for seed in range(40):
        seed_generators(seed)
        wanted = theirs(F.to_pil_image(picture(32, 32, seed)))
        seed_generators(seed)
        pixels = ours(picture(32, 32, seed))
        [found] = replace(plain, noise=Noise.of([erase(pixels.shape)]))(pixels[None])
        if jitter is None:
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        else:  # Pillow truncates where torchvision rounds, and has 256 hues
            assert (found - wanted).abs().mean() < 0.05
        changed += not torch.allclose(found, plain(picture(32, 32, seed)[None])[0])
    assert changed > 35


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ratio": (dict(crop_ratio=(0.5, 2.0)), dict(ratio=(0.5, 2.0))),
    "scale": (dict(crop_scale=(0.3, 0.6)), dict(scale=(0.3, 0.6))),
    "random interpolation": (dict(train_interpolation="random"), dict(interpolation="random")),
    "interpolation": (
        dict(train_interpolation="bilinear", interpolation="bicubic"),
        dict(interpolation="bilinear"),
    ),
    "upside down": (dict(vflip=1.0), dict(vflip=1.0)),
    "grey": (dict(grayscale=1.0), dict(grayscale_prob=1.0)),
}
"""Ours, and timm's names of the same."""


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_crop_are_timms(name):
    own, given = OPTIONS[name]
    ours = train_transform(AugmentConfig(hflip=0.0, **own), 40)
    theirs = create_transform(
        40,
        **(
            dict(is_training=True, color_jitter=None, hflip=0.0, normalize=False, interpolation="bicubic")
            | given
        ),
    )
    plain, changed = train_transform(AugmentConfig(hflip=0.0), 40), 0
    for seed, shape in enumerate(SHAPES * 2):
        seed_generators(seed)
        wanted = theirs(F.to_pil_image(picture(*shape, seed)))
        seed_generators(seed)
        found = ours(picture(*shape, seed))
        largest, mean = off(found, wanted)
        assert largest <= 2 and mean < 1, f"{shape}: {largest}, {mean}"
        seed_generators(seed)
        changed += not torch.equal(plain(picture(*shape, seed)), found)
    assert changed > (1 if name == "random interpolation" else 8)


def test_randaugment_draws_its_interpolation_as_timms_does():
    """Where that of the crop is random."""
    policy = "rand-m9-n4-mstd0.5-inc1"
    ours = train_transform(
        AugmentConfig(rand_augment=policy, train_interpolation="random", crop_scale=(0.99999, 1)), 32
    )
    theirs = create_transform(
        32,
        is_training=True,
        scale=(0.99999, 1),
        auto_augment=policy,
        interpolation="random",
        normalize=False,
    )
    theirs.transforms[1] = Flip(theirs.transforms[1].p)
    for seed in range(20):
        seed_generators(seed)
        wanted = theirs(F.to_pil_image(picture(32, 32, seed)))
        seed_generators(seed)
        assert torch.equal(ours(picture(32, 32, seed)), wanted)


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
@pytest.mark.parametrize("count", [1, 3])
def test_erased_rectangles_are_timms(mode, count):
    """Of each mode, and where several overlap."""
    plain = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    config = AugmentConfig(random_erasing=0.8, erasing_mode=mode, erasing_count=count)
    theirs, ours = RandomErasing(0.8, mode=mode, max_count=count, device="cpu"), eraser(config)
    numbers = set()
    for seed in range(30):
        pixels = picture(32, 40, seed)
        seed_generators(seed)
        wanted = theirs(plain(pixels[None])[0])
        seed_generators(seed)
        patches = ours(pixels.shape)
        assert torch.equal(replace(plain, noise=Noise.of([patches]))(pixels[None])[0], wanted)
        numbers.add(len(patches))
    assert numbers == set(range(count + 1))


@pytest.mark.parametrize("name", ["3a", "original", "v0", "augmix-m3-w3", "rand-m7-n3"])
def test_other_policies_are_timms_to_the_last_pixel(name):
    """With jitter in 3-Augment, as DeiT III has it; timm leaves it out of the others unless it is forced."""
    jitter = 0.3 if name == "3a" else None
    config = AugmentConfig(crop_scale=(0.99999, 1.0), rand_augment=name, color_jitter=jitter or 0.0)
    theirs = create_transform(
        32,
        is_training=True,
        scale=(0.99999, 1.0),
        auto_augment=name,
        color_jitter=jitter,
        interpolation="bicubic",
        normalize=False,
    )
    theirs.transforms[1] = Flip(theirs.transforms[1].p)
    ours, changed = train_transform(config, 32), 0
    for seed in range(20):
        seed_generators(seed)
        wanted = theirs(F.to_pil_image(picture(32, 32, seed)))
        seed_generators(seed)
        largest, mean = off(ours(picture(32, 32, seed)), wanted)
        assert mean < 2 if jitter else largest == 0, "jittered, Pillow truncates where torchvision rounds"
        changed += not torch.equal(wanted, picture(32, 32, seed))
    assert changed > 15


def test_trivial_augment_is_torchvisions():
    ours, theirs = (
        train_transform(AugmentConfig(crop_scale=(1, 1), hflip=0.0, rand_augment="trivial"), 32),
        v2.TrivialAugmentWide(interpolation=F.InterpolationMode.BICUBIC),
    )
    for seed in range(30):
        seed_generators(seed)
        wanted = F.pil_to_tensor(theirs(F.to_pil_image(picture(32, 32, seed))))
        seed_generators(seed)
        random.random()  # for the flip, from another generator
        assert torch.equal(ours(picture(32, 32, seed)), wanted)


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_the_loss_of_a_mixed_batch_is_that_of_deits_code(alphas):
    """timm's Mixup smooths the labels and its loss takes them as they are; here the head smooths those that
    were mixed."""
    labels = {}
    for smoothing in (0.0, 0.1):
        seed_generators(2)
        mixer = Mixup(*alphas, label_smoothing=smoothing, num_classes=10)
        _, labels[smoothing] = mixer(torch.zeros(4, 3, 8, 8), torch.arange(4))
    head, logits = load_config(DEIT).tasks["imagenet"].head, torch.randn(4, 10)
    ours = cross_entropy(logits, labels[0.0], label_smoothing=head["label_smoothing"])
    torch.testing.assert_close(ours, SoftTargetCrossEntropy()(logits, labels[0.1]))
