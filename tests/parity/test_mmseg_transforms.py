"""What a segmenter is trained and evaluated on against MMSegmentation's own transforms, on the same draws."""

import random

import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import RandomFlip, RandomResize, Resize
from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.augment import images_with_masks
from pipeline.data.augment.images_with_masks import JointCrop, resize_for_evaluation
from pipeline.data.augment.photometric import distort, to_hsv, to_rgb
from pipeline.rng import seed_generators


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [3, H, W]: coarse structure of all colours, and grey, black and white."""
    coarse = torch.randint(
        0, 256, (3, 6, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    coarse[:, 0, 0], coarse[:, 1, 1], coarse[:, 2, 2] = 0, 255, 127
    return F.resize(coarse, [height, width], interpolation=F.InterpolationMode.BICUBIC, antialias=True)


def bgr(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())


def rgb(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)


def test_photometric_distortion_is_that_of_mmseg():
    theirs, apart, changed = PhotoMetricDistortion(), [], 0
    for seed in range(60):
        image = picture(40, 64, seed)
        np.random.seed(seed)
        wanted = rgb(theirs.transform({"img": bgr(image)})["img"])
        np.random.seed(seed)
        found = distort(image)
        apart.append((found.int() - wanted.int()).abs())
        changed += not torch.equal(found, image)
    apart = torch.stack(apart)
    assert apart.max() <= 4 and apart.float().mean() < 0.3, (
        "roundings of two ways back from hues, the second time stretched"
    )
    assert changed > 50


def test_hue_saturation_and_value_are_opencvs():
    image = picture(200, 200)
    for ours, theirs in zip(to_hsv(image), mmcv.bgr2hsv(bgr(image)).transpose(2, 0, 1), strict=True):
        assert np.array_equal(ours.numpy(), theirs)
    apart = (to_rgb(*to_hsv(image)).int() - image.int()).abs()
    assert apart.max() <= 8, "a hue is one of 180"


def cropped(scale: float, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], bool]:
    """Image and mask of our crop of 32x48 out of 90x150, mirrored, and of mmseg's resize, crop and flip at
    the same place.

    And whether the place is one of whole pixels in both.
    """
    image, mask = picture(90, 150, seed), (picture(90, 150, seed)[0] // 25)
    augment = dict(resize_range=(scale, scale), hflip=1.0, photometric=False, max_class_share=1.0)
    config = AugmentConfig(**augment, antialias=False, interpolation="bilinear")
    crop = JointCrop(DataConfig(schema="segmentation", img_size=(32, 48), augment=config))
    seed_generators(seed)
    ours = crop(image, mask)
    seed_generators(seed)
    random.uniform(scale, scale)
    height, width = round(32 / scale), round(48 / scale)
    places = [random.randint(0, side - cut) * scale for side, cut in ((90, height), (150, width))]
    top, left = map(round, places)
    resized = Resize(scale_factor=scale, keep_ratio=True).transform(
        {"img": bgr(image), "gt_seg_map": mask.numpy()}
    )
    results = RandomCrop((32, 48)).crop(resized["img"], (top, top + 32, left, left + 48))
    labels = RandomCrop((32, 48)).crop(resized["gt_seg_map"], (top, top + 32, left, left + 48))
    return ours, (rgb(results).flip(-1), torch.from_numpy(labels.copy()).flip(-1)), places == [top, left]


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_resize_crop_and_flip_are_those_of_mmseg(scale):
    compared = [pair for seed in range(40) if (pair := cropped(scale, seed))[2]]
    assert len(compared) > 5
    for (image, mask), (wanted, labels), _ in compared:
        inside = (image.int() - wanted.int()).abs()[
            :, 1:-1, 1:-1
        ]  # at its rim a window does not see its neighbours
        assert inside.max() <= 1
        assert scale < 1 or torch.equal(mask, labels), (
            "of an image made smaller, masks take other pixels of the four"
        )


@pytest.mark.parametrize("scale", [0.6, 0.9, 1.4])
def test_at_other_scales_the_window_is_that_of_mmseg_up_to_a_pixel(scale):
    """A shift of half a stored pixel costs a few of 255; another place, or a picture that is not mirrored,
    more than 40."""
    for seed in range(10):
        (image, _), (wanted, _), _ = cropped(scale, seed)
        assert (image.int() - wanted.int()).abs().float().mean() < 10


@pytest.mark.parametrize("shape", [(90, 150), (150, 90), (61, 83), (40, 100)], ids=str)
def test_evaluation_resizes_as_mmseg_does(shape):
    image = picture(*shape)
    for short_side in (40, 75):
        found = resize_for_evaluation(
            image, AugmentConfig(short_side=short_side, antialias=False, interpolation="bilinear")
        )
        wanted = rgb(
            Resize(scale=(4 * short_side, short_side), keep_ratio=True).transform({"img": bgr(image)})["img"]
        )
        assert found.shape == wanted.shape and (found.int() - wanted.int()).abs().max() <= 1


class DrawsOfMmseg:
    """Stands for Python's generator in our crop: draws as MMSegmentation does, from NumPy's."""

    uniform = staticmethod(lambda low, high: np.random.random_sample() * (high - low) + low)
    randint = staticmethod(lambda low, high: np.random.randint(low, high + 1))
    random = staticmethod(np.random.random_sample)


def test_the_whole_of_a_training_image_is_mmsegs_on_its_own_draws(monkeypatch):
    """Resize, crop with cat_max_ratio and its redraws, flip and distortion. At the stored size, where windows
    of both are the same; masks to the last pixel."""
    monkeypatch.setattr(images_with_masks, "random", DrawsOfMmseg)
    augment = AugmentConfig(
        resize_range=(1.0, 1.0), max_class_share=0.6, photometric="mmseg", interpolation="bilinear"
    )
    ours = JointCrop(DataConfig(schema="segmentation", img_size=(24, 32), augment=augment))
    resize = RandomResize(scale=(150, 90), ratio_range=(1.0, 1.0), keep_ratio=True)
    theirs = [resize, RandomCrop((24, 32), cat_max_ratio=0.6), RandomFlip(prob=0.5), PhotoMetricDistortion()]
    redrawn, flipped, apart = 0, 0, []
    for seed in range(40):
        image = picture(90, 150, seed)
        mask = torch.full((90, 150), 3, dtype=torch.uint8)
        mask[50:, 90:], mask[:20, :60], mask[80:] = 5, 255, 1
        np.random.seed(seed)
        results = {"img": bgr(image), "gt_seg_map": mask.numpy().copy(), "seg_fields": ["gt_seg_map"]}
        for step in theirs:
            results = step(results)
        after = np.random.random_sample()
        np.random.seed(seed)
        found, labels = ours(image, mask)
        assert np.random.random_sample() == after, "as many draws"
        assert torch.equal(labels, torch.from_numpy(results["gt_seg_map"].copy()))
        apart.append((found.int() - rgb(results["img"]).int()).abs())
        flipped += bool(results["flip"])
        np.random.seed(seed)
        np.random.random_sample()
        plain = RandomCrop((24, 32))
        drawn = plain.crop(mask.numpy(), plain.crop_bbox({"img": bgr(image)}))
        drawn = drawn[:, ::-1] if results["flip"] else drawn
        redrawn += not np.array_equal(drawn, results["gt_seg_map"])
    assert torch.stack(apart).max() <= 4 and torch.stack(apart).float().mean() < 0.3
    assert redrawn > 10 and 10 < flipped < 30
