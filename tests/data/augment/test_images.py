"""What augmentation promises: shapes, bounds, and randomness that belongs to the sample."""

import random

import pytest
import torch

from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.images import eval_transform, train_transform
from pipeline.errors import ConfigError
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
