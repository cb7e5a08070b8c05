"""A merge that is given by whom each patch joins, by hand."""

from dataclasses import replace

import torch
from tiny import random_state

from pipeline.merging.apply import apply
from pipeline.merging.groups import join, likeness, positions
from pipeline.token_state import TokenState


def state_of(patches: int, prefix: int = 1, batch: int = 2) -> TokenState:
    tokens = torch.arange(batch * (patches + prefix), dtype=torch.float32).view(batch, patches + prefix, 1)
    return TokenState.start(tokens, (1, patches), prefix)


def test_patches_join_others_and_the_order_stays():
    merge = join(state_of(5), torch.tensor([[0, 0, 2, 4, 4], [0, 1, 1, 1, 4]]), 2)
    assert merge.keep.tolist() == [[0, 1, 3, 5], [6, 7, 8, 11]]
    assert merge.source.tolist() == [[2, 4], [9, 10]]
    assert merge.slot.tolist() == [[1, 3], [6, 6]]
    after = apply(state_of(5), merge)
    assert after.tokens[..., 0].tolist() == [[0, 1.5, 3, 4.5], [6, 7, 9, 11]]
    assert after.size.tolist() == [[1, 2, 1, 2], [1, 1, 3, 1]] and after.num_active == 4


def test_padding_leaves_where_an_image_merges_less_and_stays_behind():
    """The first image merges two of its five patches; the second has three, merges one, and loses a row of
    padding."""
    state = state_of(5, prefix=0)
    size = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    state = replace(state, size=size, padded=True, quota=torch.tensor([2, 1]))
    merge = join(state, torch.tensor([[0, 0, 2, 2, 4], [0, 0, 2, 3, 4]]), 2)
    assert merge.keep.tolist() == [[0, 2, 4], [5, 7, 8]]
    assert merge.source.tolist() == [[1, 3], [9, 6]]
    after = apply(state, merge)
    assert after.size.tolist() == [[2, 2, 1], [2, 1, 0]]
    assert after.tokens[1, :2, 0].tolist() == [5.5, 7]


def test_all_patches_are_compared_and_no_prefix():
    state = random_state(num_tokens=9, prefix=2)
    alike = likeness(state.tokens, state)
    wanted = torch.nn.functional.cosine_similarity(
        state.tokens[:, 2:, None], state.tokens[:, None, 2:], dim=-1
    )
    torch.testing.assert_close(alike, wanted)
    assert positions(state).tolist() == [list(range(7))] * 2
