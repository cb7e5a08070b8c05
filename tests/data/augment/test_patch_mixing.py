"""Cutmix of whole patches: what labels say is what patches show, by timm's draws rounded to the grid."""

from typing import Any

import pytest
import torch
from asks_nothing import AsksNothing
from timm.data.mixup import Mixup

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.augment.mixing import BatchMixer
from pipeline.data.augment.patch_mixing import mixed_labels
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.table import ShardTable
from pipeline.data.targets import ClassificationTargets, MultiLabelTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.rng import seed_generators

PATCH = (4, 8)
MODES = pytest.mark.parametrize("mode", ["batch", "pair", "elem"])


def mixer(labels: str, **options: Any) -> BatchMixer:
    return BatchMixer(
        AugmentConfig(mix_labels=labels, **{"cutmix": 1.0} | options), 6, ClassificationTargets, PATCH
    )


def greys() -> Batch:
    """Six images of one grey each, of 8 x 4 patches: number 0 to 5, which is the class too."""
    images = torch.arange(6.0).view(6, 1, 1, 1).repeat(1, 3, 32, 32)
    return Batch("t", images, ClassificationTargets(torch.arange(6)))


def patches(images: torch.Tensor) -> torch.Tensor:
    """[B, h, w, pixels of a patch]"""
    height, width = PATCH
    return images.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5).flatten(3)


@MODES
@pytest.mark.parametrize(
    "options", [{}, {"cutmix": 0.0, "cutmix_minmax": (0.2, 0.9)}], ids=["alpha", "minmax"]
)
def test_each_patch_is_of_one_image_and_labels_say_which(mode, options):
    mix, mixed_once = mixer("tokens", mix_mode=mode, **options), False
    for step in range(8):
        given = greys()
        mixed = mix(given, 7, step)
        found, mixture = patches(mixed.images), mixed.targets.mixture
        assert (found == found[..., :1]).all(), "no patch shows two images"
        own, partner = torch.arange(6.0), torch.arange(6.0).flip(0)
        expected = torch.where(mixture.partner > 0, partner[:, None, None], own[:, None, None])
        assert torch.equal(found[..., 0], expected) and mixture.labels is given.targets.labels
        torch.testing.assert_close(mixed.targets.labels @ own, mixed.images.mean((1, 2, 3)))
        assert mixed.targets.labels.dtype == mixture.partner.dtype == torch.float32
        mixed_once |= bool(0 < mixture.partner.mean() < 1)
    assert mixed_once


@MODES
def test_rectangles_are_timms_up_to_half_a_patch(mode):
    """On the same draws."""
    theirs, mix = (
        Mixup(mixup_alpha=0, cutmix_alpha=1.0, mode=mode, num_classes=6),
        mixer("tokens", mix_mode=mode),
    )
    height, width = PATCH
    compared = 0
    for step in range(12):
        seed_generators(7, "mix", step)
        images, _ = theirs(greys().images, greys().targets.labels)
        of_theirs = images[:, 0] != torch.arange(6.0)[:, None, None]
        parts = mix(greys(), 7, step).targets.mixture.partner
        for box, part in zip(of_theirs, parts, strict=True):
            if box.any() and part.any():
                compared += 1
                for axis, side in ((0, height), (1, width)):
                    pixels = box.any(1 - axis).nonzero().flatten()
                    grid = part.any(1 - axis).nonzero().flatten()
                    for edge, snapped in ((pixels[0], grid[0]), (pixels[-1] + 1, grid[-1] + 1)):
                        assert abs(edge.item() - side * snapped.item()) <= side / 2
            elif box.any():
                rows, columns = (int(box.any(1 - axis).sum()) for axis in (0, 1))
                assert rows < height or columns < width, "what is left out is thinner than a patch"
    assert compared > 10


@MODES
def test_labels_by_area_go_with_the_same_images(mode):
    by_area, by_tokens = (mixer(kind, mix_mode=mode)(greys(), 3, 5) for kind in ("patches", "tokens"))
    assert torch.equal(by_area.images, by_tokens.images) and by_area.targets.mixture is None
    assert torch.equal(by_area.targets.labels, by_tokens.targets.labels)


@MODES
def test_a_batch_that_is_not_mixed_says_so(mode):
    given = greys()
    mixed = mixer("tokens", mix_mode=mode, mix_prob=0.0)(given, 7, 1)
    assert torch.equal(mixed.images, given.images) and not mixed.targets.mixture.partner.any()
    assert torch.equal(mixed.targets.labels, torch.eye(6))


@MODES
def test_the_host_asks_the_device_nothing(mode):
    mix, given = mixer("tokens", mix_mode=mode), greys()
    with AsksNothing():
        mix(given, 7, 1)


def test_labels_of_several_classes_are_mixed_too():
    several = (torch.arange(30).view(6, 5) % 3 == 0).float()
    given = Batch("t", greys().images, MultiLabelTargets(several))
    mix = BatchMixer(AugmentConfig(cutmix=1.0, mix_labels="tokens"), 5, MultiLabelTargets, PATCH)
    targets = mix(given, 7, 2).targets
    share = targets.mixture.partner.mean((1, 2))[:, None]
    torch.testing.assert_close(targets.labels, several * (1 - share) + several.flip(0) * share)
    assert torch.equal(mixed_labels(several, torch.zeros(6), 5), several)


@pytest.mark.parametrize("labels", ["patches", "tokens"])
@pytest.mark.parametrize("options", [{"cutmix": 1.0, "mixup": 0.8}, {"mixup": 0.8}, {}], ids=str)
def test_patches_that_would_be_of_two_images_are_refused(labels, options):
    with pytest.raises(ConfigError, match=f"augment.mix_labels is '{labels}'.*give mixup=0 and cutmix=1"):
        AugmentConfig(mix_labels=labels, **options)


@pytest.mark.parametrize("schema", ["segmentation", "captioning"])
def test_data_without_a_label_of_the_image_refuse_it_by_name(schema):
    augment = AugmentConfig(cutmix=1.0, mix_labels="tokens")
    with pytest.raises(
        ConfigError, match=f"schema '{schema}' does not use.*data.augment.mix_labels='tokens'"
    ):
        DATASETS.build(
            schema, DataConfig(schema=schema, augment=augment), Manifest(ShardTable.of([]), (), ("a",))
        )
