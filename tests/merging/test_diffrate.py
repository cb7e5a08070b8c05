"""DiffRate: which patches leave, which of them are pruned, and where the others go."""

import pytest
import torch
from tiny import images, tiny_vit
from torch.nn import functional as F

from pipeline.backbone.attention import Place, reference_attention
from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.diffrate import LEAST
from pipeline.token_state import TokenState

R = 8
POOLED = "no prefix, average pooling"


@torch.no_grad()
def first_merge(prefix="class token", **options):
    """The merge of the first of three blocks, the tokens before it, and attention [B, H, M, M] by its
    definition."""
    model = tiny_vit("diffrate", reduction=[R, 0, 0], prefix=prefix, **options).eval().double()
    (merge,) = model(images().double()).final.merges
    tokens, _ = model._embed(images().double())
    attended = model.blocks[0].attend(tokens, Place())
    every = torch.eye(tokens.shape[1], dtype=torch.float64).expand(2, 3, -1, -1)
    weights = reference_attention(attended.mixed.q, attended.mixed.k, every, None, scale=attended.scale)
    return merge, attended.output, weights


def test_the_least_important_patches_are_pruned_and_the_next_ones_join_what_is_most_like_them():
    merge, tokens, weights = first_merge(pruned=0.25)
    least = weights[:, :, 0, 1:].mean(dim=1).argsort(dim=-1)[:, :R] + 1
    assert torch.equal(merge.source % 65, least)
    after = apply(TokenState.start(tokens, (8, 8), 1), merge)
    for image, leaving in enumerate(least.tolist()):
        kept = [i for i in range(65) if i not in leaving]
        groups, sizes = {i: [tokens[image, i]] for i in kept}, dict.fromkeys(kept, 1.0)
        for i in leaving[2:]:
            alike = F.cosine_similarity(tokens[image, i], tokens[image, kept[1:]], dim=-1)
            into = kept[1 + int(alike.argmax())]
            groups[into].append(tokens[image, i])
            sizes[into] += max(LEAST, float(alike.max()))
        expected = torch.stack([torch.stack(group).mean(dim=0) for group in groups.values()])
        torch.testing.assert_close(after.tokens[image], expected, atol=1e-9, rtol=0)
        torch.testing.assert_close(after.size[image], torch.tensor(list(sizes.values())).double())


def test_without_a_class_token_importance_is_attention_received():
    merge, _, weights = first_merge(POOLED, importance="received")
    least = weights.sum(dim=2).mean(dim=1).argsort(dim=-1)[:, :R]
    assert torch.equal(merge.source % 64, least)
    with pytest.raises(ConfigError, match="'diffrate' cannot serve .* it needs a class token"):
        first_merge(POOLED)


@pytest.mark.parametrize(
    ("pruned", "counts"), [(0.5, [4, 4, 4]), ([0, 1, 0.25], [0, 8, 2]), ([1.0, 0.5], [8, 8, 4])]
)
def test_blocks_have_shares_of_their_own(pruned, counts):
    """As many shares as blocks are one for each; fewer are those of equal parts of them."""
    model = tiny_vit("diffrate", reduction=R, pruned=pruned).eval()
    with torch.no_grad():
        merges = model(images()).final.merges
    assert [(merge.part == 0).sum(dim=1).tolist() for merge in merges] == [[count] * 2 for count in counts]


@pytest.mark.parametrize("blocks", [3, 12, 49])
def test_each_block_finds_its_share(blocks):
    shares = [i / blocks for i in range(blocks)]
    policy = POLICIES.build("diffrate", pruned=shares)
    assert [policy.pruned_share(i / blocks) for i in range(blocks)] == shares


def test_where_all_that_leaves_is_pruned_it_is_evit():
    """Sizes are 1 then, and attention does not ask for them."""
    finals = []
    for policy, options in (("diffrate", {"pruned": 1.0}), ("evit", {})):
        with torch.no_grad():
            finals.append(tiny_vit(policy, reduction=R, **options).eval().double()(images().double()).final)
    torch.testing.assert_close(finals[0].tokens, finals[1].tokens, atol=1e-9, rtol=0)
    assert torch.equal(finals[0].size, finals[1].size)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pruned": 1.5}, "pruned is 1.5; give shares of what leaves, in"),
        ({"pruned": []}, "pruned is \\[\\]"),
        ({"pruned": [0.5, -0.1]}, "pruned is \\[0.5, -0.1\\]"),
        ({"pruned": "half"}, "pruned is 'half'; give a value of type"),
        ({"importance": "norm"}, "importance is 'norm'; give one of class, received"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        POLICIES.build("diffrate", **options)
