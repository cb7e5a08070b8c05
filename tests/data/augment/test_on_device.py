"""Colours that are changed on the device are those that a worker would have made, from the same draws."""

import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shardkit import config
from torch import Tensor

from pipeline.changes.changes import KERNELS, Changes
from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.draws import KINDS, drawing
from pipeline.data.augment.images import train_transform
from pipeline.data.stream import TrainStream, build_stream
from pipeline.errors import ConfigError
from pipeline.rng import seed_generators

SIZE = (40, 56)
STILL = AugmentConfig(crop_scale=(1, 1), hflip=0)
OPERATORS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateXRel", "TranslateYRel")
OPERATORS += ("PosterizeIncreasing", "SolarizeIncreasing", "ColorIncreasing", *KINDS)


def picture(number: int) -> Tensor:
    """uint8 [3, *SIZE]: smooth, with noise; every other one with pixels at both ends of the range."""
    draws = torch.Generator().manual_seed(number)
    low, high = (60, 190) if number % 2 else (-20, 280)
    coarse = low + (high - low) * torch.rand(1, 3, 5, 7, generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")[0]
    return (smooth + 10 * torch.randn(3, *SIZE, generator=draws)).clamp(0, 255).to(torch.uint8)


def both(wanted: AugmentConfig, number: int) -> tuple[Tensor, Tensor]:
    """Image `number` as a worker changes it, and as the device does, with the draws of its address."""
    seed_generators("augment", number)
    by_worker = train_transform(wanted, SIZE)(picture(number))
    seed_generators("augment", number)
    on_device = replace(wanted, on_device=True)
    image, changes = (
        train_transform(on_device, SIZE)(picture(number)),
        Changes.of([drawing(on_device, SIZE)()]),
    )
    state = random.random(), np.random.rand(), torch.rand(1)
    seed_generators("augment", number)
    train_transform(wanted, SIZE)(picture(number))
    assert state == (random.random(), np.random.rand(), torch.rand(1)), "as many draws"
    return by_worker, image if changes is None else changes(image[None])[0]


def stream_of(
    folder: Path, *, workers: int = 0, rank: int = 0, world_size: int = 1, **augment: Any
) -> TrainStream:
    changes = AugmentConfig(
        rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.2, random_erasing=0.5, **augment
    )
    options = config(folder, workers=workers, views=2, img_size=16, augment=changes)
    return build_stream("t", options, seed=3, rank=rank, world_size=world_size, batch_size=4 // world_size)


def images_of(stream: TrainStream, batches: int) -> list[Tensor]:
    """Normalised, by sample: each [views, 3, H, W]."""
    return [
        image for batch in islice(stream, batches) for image in batch.to("cpu").images.unflatten(0, (-1, 2))
    ]


def test_workers_ranks_and_resuming_change_no_pixel(uneven):
    expected = images_of(stream_of(uneven, on_device=True), 3)
    by_two = images_of(stream_of(uneven, on_device=True, workers=2), 3)
    assert all(torch.equal(a, b) for a, b in zip(expected, by_two, strict=True))
    ranks = [images_of(stream_of(uneven, on_device=True, rank=rank, world_size=2), 3) for rank in (0, 1)]
    dealt = [image for step in range(3) for own in ranks for image in own[2 * step : 2 * step + 2]]
    assert all(torch.equal(a, b) for a, b in zip(expected, dealt, strict=True))
    first, later = stream_of(uneven, on_device=True), stream_of(uneven, on_device=True)
    images_of(first, 1)
    later.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(expected[4:], images_of(later, 2), strict=True))
    # of the same draws, and of the same noise
    by_workers = images_of(stream_of(uneven), 3)
    far = torch.stack([(a - b).abs().mean() for a, b in zip(expected, by_workers, strict=True)])
    assert far.median() < 0.03 and not torch.equal(expected[0][0], expected[0][1])


def differ(one: Tensor, other: Tensor) -> Tensor:
    return (one.int() - other.int()).abs()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", OPERATORS)
def test_each_operator_is_timms_within_one_of_255(name, interpolation, monkeypatch):
    monkeypatch.setattr("timm.data.auto_augment._RAND_TRANSFORMS", [name])
    for number in range(8):
        policy = f"rand-m{number + 2}-mstd0.5-n1-p1"
        by_worker, on_device = both(replace(STILL, rand_augment=policy, interpolation=interpolation), number)
        assert differ(by_worker, on_device).max() <= 1
    assert any(
        not torch.equal(both(replace(STILL, rand_augment="rand-m8-n1-p1"), number)[0], picture(number))
        for number in range(4)
    )


@pytest.mark.parametrize(
    "change",
    [
        dict(color_jitter=(0.5, 0.0, 0.0, 0.0)),
        dict(color_jitter=(0.0, 0.5, 0.0, 0.0)),
        dict(color_jitter=(0.0, 0.0, 0.5, 0.0)),
        dict(color_jitter=(0.0, 0.0, 0.0, 0.5)),
        dict(grayscale=0.5),
    ],
)
def test_each_jitter_is_torchvisions_within_one_of_255(change):
    for number in range(8):
        assert differ(*both(replace(STILL, **change), number)).max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        dict(rand_augment="rand-m9-mstd0.5-inc1"),
        dict(rand_augment="rand-m9-n3-inc1", train_interpolation="random", crop_scale=(0.3, 1)),
        dict(rand_augment="original"),
        dict(color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.2),
    ],
)
def test_a_row_of_changes_keeps_its_order(change):
    """One of 255 at the first may become more at the next, in a few pixels."""
    for number in range(12):
        assert differ(*both(replace(STILL, **change), number)).float().mean() < 1


def test_an_image_does_not_depend_on_its_batch():
    wanted = replace(STILL, rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, on_device=True)
    images, drawn = torch.stack([picture(number) for number in range(24)]), []
    for number in range(24):
        seed_generators(number)
        drawn.append(drawing(wanted, SIZE)())
    kept, together = images.clone(), Changes.of(drawn)
    assert together is not None and {group.kind for group in together.groups} > {"equalize", "sharpness"}
    found = together(images)
    assert torch.equal(images, kept), "the images themselves stay"
    for number, changes in enumerate(drawn):
        alone = Changes.of([changes])
        expected = images[number] if alone is None else alone(images[number : number + 1])[0]
        assert torch.equal(found[number], expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 9)])
@pytest.mark.parametrize("kind", KERNELS)
def test_small_and_plain_images_are_no_special_case(kind, size):
    values = torch.tensor([[1.0, 0.2, 0.1, -0.2, 1.0, 0.3, 9.0, 9.0, 9.0]])
    values = values if kind.startswith("move") else values[:, : 2 if kind in ("scale", "solarize_add") else 1]
    for level in (0, 7, 255):
        images = torch.full((1, 3, *size), level, dtype=torch.uint8)
        found = KERNELS[kind](images, values)
        assert found.dtype == torch.uint8 and found.shape == images.shape


@pytest.mark.parametrize("name", ["trivial", "augmix-m3-w3", "3a"])
def test_what_only_workers_do_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"{name}.*on_device"):
        drawing(AugmentConfig(rand_augment=name, on_device=True), SIZE)
