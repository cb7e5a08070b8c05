"""What a hard merge costs in inference: the number of kernels, and that nothing of it changes values."""

from dataclasses import replace

import pytest
import torch
from kernel_counts import kernels
from tiny import images, tiny_vit

from pipeline.merging import apply as moving
from pipeline.merging.apply import apply
from pipeline.token_state import Assignment, TokenState


def kernels_of(policy, dtype):
    model, x = tiny_vit(policy, reduction=[4, 4, 4]).eval(), images()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return kernels(lambda: model(x))


@pytest.mark.parametrize(
    ("policy", "dtype", "most"), [("tome", torch.float32, 40), ("dtem", torch.bfloat16, 56)]
)
def test_a_block_with_a_merge_takes_few_kernels(policy, dtype, most):
    assert kernels_of(policy, dtype).total() <= 3 * most


def test_sizes_cost_a_bfloat16_attention_on_a_cpu_no_copies_of_queries_and_keys():
    counts = kernels_of("tome", torch.bfloat16)
    assert (
        counts["aten::constant_pad_nd"] == 0
        and counts["aten::_scaled_dot_product_flash_attention_for_cpu"] == 3
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighed", [False, True], ids=["by size", "by weight"])
def test_a_merge_is_the_same_with_and_without_gradients(dtype, weighed):
    torch.manual_seed(0)
    state = TokenState.start(torch.randn(2, 10, 5).to(dtype), (3, 3), 1)
    state = replace(state, size=torch.rand_like(state.size) + 0.5)
    keep, source = torch.tensor([[0, 2, 4, 5, 7, 9]] * 2), torch.tensor([[1, 3, 6, 8]] * 2)
    options = {"weight": torch.rand_like(state.size) + 0.1} if weighed else {}
    merge = Assignment.of(keep, source, torch.tensor([[1, 1, 1, 3]] * 2), 10, **options)
    learning = replace(state, tokens=state.tokens.clone().requires_grad_())
    found, wanted = apply(state, merge), apply(learning, merge)
    rounding = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(found.tokens, wanted.tokens.detach(), atol=rounding, rtol=rounding)
    assert found.tokens.dtype == dtype and torch.equal(found.size, wanted.size)


def test_a_way_that_is_timed_costs_what_it_costs_once(monkeypatch):
    """Weights that the first call has left would make the operators look faster than they are."""
    counts = []

    def timed(tokens, size, assignment, least, eager):
        counts.extend(kernels(eager).total() for _ in range(3))
        return eager()

    monkeypatch.setattr(moving, "moved", timed)
    with torch.device("meta"):  # a device on which no way of its own runs
        state = TokenState.start(torch.empty(2, 10, 5), (3, 3), 1)
        row = torch.zeros(2, 5, dtype=torch.int64)
        merge = Assignment(row, row, row, 10, 5)
    with torch.no_grad():
        apply(state, merge)
    assert len(set(counts)) == 1 and counts[0] > 0
