"""The contrastive part: its temperature has a ceiling that it leaves again, and its logits keep their digits
under autocast."""

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.engine.optimizers import GroupAdamW
from tasks.captioning import LARGEST_SCALE
from tasks.captions.losses import below, contrastive_loss

CEILING = math.log(LARGEST_SCALE)


def features(seed: int, count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and captions that mostly find one another."""
    draws = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 16, generator=draws)
    text = image + torch.randn(count, 16, generator=draws)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


@pytest.mark.parametrize("start", [CEILING - 0.5, CEILING + 1e-4, CEILING + 0.5])
def test_the_scale_comes_back_from_its_ceiling(start):
    """A loss that wants it larger leaves it where it is, one that wants it smaller moves it, by the optimizer
    of a run."""
    scale = torch.nn.Parameter(torch.tensor([start]))
    optimizer = GroupAdamW([dict(params=[scale], name="a", lr=0.05, weight_decay=0.0)], betas=(0.9, 0.98))
    optimizer.create_state([scale])
    for sign, steps in ((-1, 40), (1, 80)):
        for _ in range(steps):
            used = below(scale, CEILING)
            assert used <= CEILING + 1e-6
            scale.grad = torch.autograd.grad((sign * used).sum(), scale)[0]
            optimizer.step()
        if sign < 0:
            assert CEILING - 1e-6 <= scale.item() < max(start, CEILING) + 0.5
    assert scale.item() < CEILING - 0.5


def test_below_the_ceiling_nothing_changes():
    value = torch.tensor([1.0, 2.0, CEILING], requires_grad=True)
    (below(value, CEILING) * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    assert torch.equal(below(value, CEILING), value) and value.grad.tolist() == [1.0, -2.0, 3.0]


@pytest.mark.parametrize("views", [1, 2, 4])
def test_views_of_one_sample_are_not_told_from_one_another(views):
    """The loss of each image is that among its own caption and those of the other samples, and so the other
    way round."""
    image, text = features(0, 8)
    scale, samples = torch.tensor([7.0]), torch.arange(8) // views
    expected = []
    for asked, given in ((image, text), (text, image)):
        for i in range(8):
            among = torch.cat([given[i : i + 1], given[samples != samples[i]]])
            expected.append(F.cross_entropy(scale * (asked[i] @ among.T), torch.tensor(0)))
    torch.testing.assert_close(contrastive_loss(image, text, scale, views), torch.stack(expected).mean())


def test_a_batch_of_one_sample_has_nothing_to_contrast():
    image, text = (tensor.requires_grad_() for tensor in features(0, 3))
    loss = contrastive_loss(image, text, torch.tensor([7.0]), views=3)
    loss.backward()
    assert loss == 0 and not image.grad.any() and not text.grad.any()


def test_autocast_does_not_round_the_logits():
    image, text = features(0)
    wanted = contrastive_loss(image, text, torch.tensor([LARGEST_SCALE]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contrastive_loss(image, text, torch.tensor([LARGEST_SCALE]))
    assert found.dtype == torch.float32 and torch.equal(found, wanted)
