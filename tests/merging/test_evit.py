"""EViT: which patches leave, and what stays of them."""

import pytest
import torch
from tiny import images, tiny_vit

from pipeline.backbone.attention import Place, reference_attention
from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.evit import _fused
from pipeline.token_state import TokenState

R = 9


@torch.no_grad()
def first_merge(variant):
    """The merge of the first of three blocks, the tokens before it, and the class token's attention [B, P] by
    its definition."""
    model = tiny_vit(variant, reduction=[R, 0, 0]).eval().double()
    x = images().double()
    (merge,) = model(x).final.merges
    tokens, _ = model._embed(x)
    attended = model.blocks[0].attend(tokens, Place())
    every = torch.eye(tokens.shape[1], dtype=torch.float64).expand(2, 3, -1, -1)
    weights = reference_attention(attended.mixed.q, attended.mixed.k, every, None, scale=attended.scale)
    return model, merge, attended.output, weights[:, :, 0, 1:].mean(dim=1)


def test_the_patches_with_the_least_attention_of_the_class_token_leave():
    """And what follows computes as if they had never been there."""
    model, merge, tokens, attention = first_merge("evit")
    least = attention.argsort(dim=-1)[:, :R] + 1
    assert torch.equal(merge.source % 65, least)
    stays = torch.ones(2, 65, dtype=torch.bool).scatter(1, least, False)
    with torch.no_grad():
        kept = model.blocks[0].feed_forward(tokens[stays].view(2, 65 - R, -1))
        state = TokenState.start(kept, (1, 64 - R), 1)
        for block in list(model.blocks)[1:]:
            state = block(state, 0, Place(), relaxed=False)
        final = model(images().double()).final
    torch.testing.assert_close(final.tokens, model.norm(state.tokens), atol=1e-9, rtol=0)
    assert torch.equal(final.size, torch.ones(2, 65 - R))


def test_fused_patches_become_one_token_by_their_attention():
    _, merge, tokens, attention = first_merge("evit_fused")
    least = attention.argsort(dim=-1)[:, : R + 1]
    chosen = tokens[:, 1:].gather(1, least[..., None].expand(-1, -1, 48))
    weight = attention.gather(1, least)[..., None]
    after = apply(TokenState.start(tokens, (8, 8), 1), merge)
    assert after.tokens.shape[1] == 65 - R
    torch.testing.assert_close(after.tokens[:, -1], (chosen * weight).sum(1) / weight.sum(1))
    assert after.size.tolist() == [[1.0] * (64 - R) + [R + 1.0]] * 2
    others = torch.ones(2, 65, dtype=torch.bool).scatter(1, least + 1, False)
    assert torch.equal(after.tokens[:, :-1].flatten(0, 1), tokens[others])


def test_two_of_four_patches_are_fused_by_hand():
    """A class token 9 and patches 1, 2, 4, 8: the first and the last receive least."""
    state = TokenState.start(torch.tensor([[[9.0], [1], [2], [4], [8]]]), (2, 2), 1)
    after = apply(state, _fused(state, torch.tensor([[0.1, 0.3, 0.4, 0.2]]), 1))
    fused = (0.1 * 1 + 0.2 * 8) / 0.3
    torch.testing.assert_close(after.tokens[0, :, 0], torch.tensor([9.0, 2.0, 4.0, fused]))
    assert after.size.tolist() == [[1.0, 1.0, 1.0, 2.0]]


def test_pruning_leaves_sizes_alone_so_that_attention_does_not_ask_for_them():
    """Proportional attention is then plain attention, to the bit."""
    model = tiny_vit("evit").eval()
    with torch.no_grad():
        always = model(images()).final
        model.proportional_attention = "never"
        assert torch.equal(model(images()).final.tokens, always.tokens)
    assert not POLICIES.build("evit").resizes and POLICIES.build("evit", fuse=True).resizes


def test_what_is_no_switch_is_refused():
    with pytest.raises(ConfigError, match="fuse is 1; give a value of type bool"):
        POLICIES.build("evit", fuse=1)
