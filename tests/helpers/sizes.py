"""The law of sizes: a token of size 2 counts in every block like two equal tokens of size 1."""

from dataclasses import replace

import torch

from pipeline.backbone.attention import Place


@torch.no_grad()
def check_size_two_counts_like_two(blocks, state, rotary):
    """In float64. state, rotary: before the first block, as `Rotary.start` gives it. The last token is
    doubled, and padding counts like the others."""
    last = state.tokens.shape[1] - 1
    twice = torch.tensor([*range(last + 1), last])
    ones, size = torch.ones_like(state.size), torch.ones_like(state.size)
    size[:, last] = 2
    once = replace(state, size=size)
    doubled = replace(state, tokens=state.tokens[:, twice], size=ones[:, twice], num_active=last + 2)
    for i, block in enumerate(blocks):
        rope = None if rotary is None else rotary.at(state, i)
        both = None if rope is None else replace(rope, table=rope.table[:, :, twice])
        once = block(once, 0, Place(size, rope), relaxed=False)
        doubled = block(doubled, 0, Place(None, both), relaxed=False)
    torch.testing.assert_close(doubled.tokens[:, :-1], once.tokens, atol=1e-9, rtol=0)


def check_embedded(blocks, embedded):
    """The same for what a patched model gives its blocks."""
    state, rotary = embedded.state, embedded.rotary
    check_size_two_counts_like_two(blocks, state if rotary is None else rotary.start(state), rotary)
