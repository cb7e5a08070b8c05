"""The operations on rows have the values and the gradients of their definitions."""

from functools import partial

import pytest
import torch

from pipeline.merging.rows import add_weighted_rows, quotient


@pytest.mark.parametrize("shape", [(), (3,)])
def test_adding_weighted_rows_has_the_gradient_of_its_sum(shape):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.rand, dtype=torch.float64, generator=generator, requires_grad=True)
    into, values, weight = draw((2, 4, *shape)), draw((2, 5, *shape)), draw((2, 7))
    to, rows = (torch.randint(n, (2, 7), generator=generator) for n in (8, 10))
    plain = into.detach().flatten(0, 1).clone()
    for i, row, part in zip(to.flatten(), rows.flatten(), weight.flatten(), strict=True):
        plain[i] += values.flatten(0, 1)[row].detach() * part.detach()
    torch.testing.assert_close(add_weighted_rows(into, to, values, rows, weight).flatten(0, 1), plain)
    assert torch.autograd.gradcheck(
        lambda i, v, w: add_weighted_rows(i, to, v, rows, w), (into, values, weight)
    )


def test_a_quotient_has_its_gradient():
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.rand, dtype=torch.float64, generator=generator, requires_grad=True)
    total, whole = draw((2, 5, 3)), draw((2, 5))
    assert torch.equal(quotient(total, whole), total / whole[..., None])
    assert torch.autograd.gradcheck(quotient, (total, whole + 0.5))
