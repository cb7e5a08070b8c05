"""What becomes of pixels on their way to a model."""

import pytest
import torch
from asks_nothing import AsksNothing

from pipeline.backbone.build import build_backbone
from pipeline.data.quarantine import Loaded
from pipeline.data.targets import CaptionTargets, ClassificationTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, map_tensors
from pipeline.pixels import Noise, Normalisation, Patch

COLOURS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "far": ((0.0, 1.0, 0.3), (1.0, 0.01, 0.2)),
}


def every_value() -> torch.Tensor:
    """uint8 [2, 3, 16, 16]: each value in each channel, in two orders."""
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    return torch.stack([values, values.flip(-1)])


def noise() -> Noise:
    patches = [[Patch(2, 3, torch.randn(3, 4, 5))], [], [Patch(0, 0, torch.randn(3, 16, 1))]]
    made = Noise.of(patches)
    assert made is not None
    return made


@pytest.mark.parametrize("colours", COLOURS)
def test_normalising_is_the_textbook_formula_for_every_value(colours):
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in COLOURS[colours])
    images = every_value()
    found = Normalisation(*COLOURS[colours])(images)
    assert found.dtype == torch.float32 and images.dtype == torch.uint8
    off = (found.double() - (images / 255 - mean) / std) * std
    assert off.abs().max() <= 2**-22, "of the range of pixels: two roundings of float32"


def test_a_patch_overwrites_its_rectangle_and_nothing_else():
    images, noisy = torch.zeros(3, 3, 16, 16), noise()
    noisy.onto(images)
    assert noisy.boxes == ((0, 2, 3, 4, 5), (2, 0, 0, 16, 1))
    first, last = noisy.values[:60].view(3, 4, 5), noisy.values[60:].view(3, 16, 1)
    assert torch.equal(images[0, :, 2:6, 3:8], first) and torch.equal(images[2, :, :, :1], last)
    assert images.count_nonzero() == noisy.values.count_nonzero()
    assert Noise.of([[], []]) is None


def test_the_host_does_not_wait_for_the_device():
    batch = Batch("t", every_value()[[0, 1, 0]], ClassificationTargets(torch.arange(3)), ("a", "b", "c"))
    batch = Batch(
        batch.task, batch.images, batch.targets, batch.keys, Normalisation(*COLOURS["half"], noise())
    )
    first = batch.to("cpu")
    with AsksNothing():
        second = batch.to("cpu")
    assert torch.equal(first.images, second.images) and second.normalisation is None


def test_every_tensor_of_a_batch_is_moved_and_nothing_else_is_changed():
    targets = CaptionTargets(torch.ones(2, 8, dtype=torch.int64), (("a", "b"), ("c",)))
    batch = Batch("t", every_value(), targets, ("x", "y"), Normalisation(*COLOURS["half"], noise()))
    seen: list[torch.Tensor] = []
    assert map_tensors(lambda tensor: seen.append(tensor) or tensor, Loaded(batch, 2, ())) == Loaded(
        batch, 2, ()
    )
    assert [tensor.dtype for tensor in seen] == [torch.uint8, torch.int64, torch.float32]
    doubled = map_tensors(lambda tensor: 2 * tensor, batch)
    assert torch.equal(doubled.targets.tokens, 2 * targets.tokens) and torch.equal(
        doubled.normalisation.noise.values, 2 * seen[2]
    )
    assert (doubled.targets.references, doubled.keys) == (targets.references, batch.keys)


def test_pixels_that_reach_a_backbone_are_refused():
    backbone = build_backbone(
        "vit_tiny_patch16_224",
        policy="tome",
        img_size=32,
        timm_options=dict(depth=1, embed_dim=24, num_heads=3),
    )
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"images are torch.uint8.*normalised.*`to` of a stream's batch"):
        backbone(images)
    backbone(Normalisation(*COLOURS["imagenet"])(images))
