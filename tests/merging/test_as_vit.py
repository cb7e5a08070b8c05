"""AS-ViT: scores, thresholds and masks. A masked pass is one in which the masked patches are removed."""

import pytest
import torch
from tiny import images, tiny_vit

from pipeline import unmerge
from pipeline.backbone.attention import reference_attention
from pipeline.backbone.masked_attention import masked_attention
from pipeline.backbone.metric import EmbeddingSpec
from pipeline.backbone.threshold import Threshold, kept_reduction
from pipeline.errors import ConfigError
from pipeline.merging.apply import sizes_after
from pipeline.merging.evidence import Evidence
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.as_vit import score_of, straight_through
from pipeline.merging.policy import merge
from pipeline.token_state import Carried, TokenState

PATCHES = 64


def model(thresholds=None, **options):
    """In float64, with attention that is not even, and these thresholds."""
    built = tiny_vit("as_vit", **options).double().eval()
    with torch.no_grad():
        for block in built.blocks:
            block.attn.qkv.weight.mul_(8)
    return built if thresholds is None else with_thresholds(built, thresholds)


def with_thresholds(built, thresholds):
    with torch.no_grad():
        for block, threshold in zip(built.blocks, thresholds, strict=True):
            block.metric.threshold.fill_(threshold)
    return built


def masks(state):
    """[B, N] bool for each merge: which input positions it leaves unmasked."""
    start = torch.ones(len(state.tokens), PATCHES + 1, dtype=torch.float64)
    return [size > 0 for size in sizes_after(state.merges, start)]


@pytest.mark.parametrize("how", ["copy", "soft", "residual"])
def test_a_masked_pass_is_that_of_the_patches_that_stay(how):
    """The class token, the tokens, and what unmerging reads in place of the others; image by image, as each
    has a number of its own. Acceptance check 2."""
    built, x = model([0.6, 0.7, 0.8]), images(3).double()
    for image in x.split(1):
        with torch.no_grad():
            masked = built(image, relaxed=True, unmerge=how).final
            left = [PATCHES, *(int(mask[:, 1:].sum()) for mask in masks(masked))]
            gone = [before - after for before, after in zip(left, left[1:], strict=False)]
            assert all(0 < r < before // 2 for r, before in zip(gone, left, strict=False)), gone
            removed = built(image, reduction=gone, relaxed=False, unmerge=how).final
        kept = masked.tokens[masked.size > 0]
        torch.testing.assert_close(masked.tokens[:, 0], removed.tokens[:, 0], atol=1e-9, rtol=0)
        torch.testing.assert_close(by_value(kept), by_value(removed.tokens[0]), atol=1e-9, rtol=0)
        torch.testing.assert_close(unmerge(masked), unmerge(removed), atol=1e-9, rtol=0)


def by_value(tokens):
    return tokens[tokens[:, 0].argsort()]


def test_thresholds_below_all_scores_leave_the_plain_model():
    """In training, and in inference by what they kept. Acceptance check 1."""
    built, x = model([-1.0] * 3, reduction=[20, 20, 5]), images().double()
    with torch.no_grad():
        plain, masked = built(x, reduction=0).final, built(x, relaxed=True).final
    for own, wanted in zip(masked.tokens, plain.tokens, strict=True):
        torch.testing.assert_close(by_value(own), by_value(wanted))
    assert torch.equal(masked.size, torch.ones_like(masked.size))
    for block in built.blocks:
        block.metric.note(masked.patch_size.mean())
    assert kept_reduction(built.blocks, PATCHES) == [0, 0, 0]


def test_what_a_block_masks_stays_masked():
    """Acceptance check 5. Also where the later threshold lets everything pass."""
    for thresholds in ([0.7, 0.8, 0.9], [0.9, -1.0, -1.0]):
        marks = Carried(torch.arange(PATCHES + 1).expand(2, -1), "first")
        with torch.no_grad():
            built = model(thresholds)
            output = built(images().double(), relaxed=True, taps=(0, 1, 2), carried={"mark": marks})
        kept = [
            [
                set(marks[size > 0].tolist())
                for marks, size in zip(tap.carried["mark"].values, tap.size, strict=True)
            ]
            for tap in output.taps
        ]
        for early, late in zip(kept, kept[1:], strict=False):
            assert all(after <= before for before, after in zip(early, late, strict=True))
        assert all(0 < len(own) < PATCHES for own in kept[-1])


def test_the_score_is_class_attention_by_the_shares_of_heads():
    """Shares of a token add up to 1, so with the same attention in all heads the score is its row. Acceptance
    check 4."""
    q, k, outputs = torch.randn(3, 2, 3, 9, 5, dtype=torch.float64).unbind()
    shown = Evidence(q[:, 0], q, k, scale=0.4, outputs=outputs)
    weights = ((q @ k.mT) * 0.4).softmax(dim=-1)[:, :, 0]
    norms = outputs.norm(dim=-1)
    torch.testing.assert_close(score_of(shown), (weights * norms / norms.sum(1, keepdim=True)).sum(1))
    torch.testing.assert_close(shown.head_shares.sum(dim=1), torch.ones(2, 9, dtype=torch.float64))
    same = Evidence(q[:, 0], q[:, :1].expand_as(q), k[:, :1].expand_as(k), scale=0.4, outputs=outputs)
    torch.testing.assert_close(score_of(same), weights[:, 0])
    torch.testing.assert_close(score_of(same)[:, 1:].sum(dim=1), 1 - weights[:, 0, 0])


def test_in_inference_the_lowest_scores_leave_whatever_thresholds_say():
    policy, state = POLICIES.build("as_vit"), TokenState.start(torch.randn(2, 17, 5), (4, 4), 1)
    q, k, outputs = torch.randn(3, 2, 3, 17, 5).unbind()
    shown = Evidence(state.tokens, q, k, scale=1.0, outputs=outputs)
    after = merge(policy, shown, state, 6)
    least = score_of(shown)[:, 1:].argsort(dim=-1)[:, :6] + 1
    assert torch.equal(after.merges[0].source % 17, least) and after.tokens.shape[1] == 11


def test_a_threshold_counts_in_parts_of_the_mean_attention():
    """So that it holds at every size of image: 1.01 is above the score of each of N patches that receive
    1 / (N + 1)."""
    for side in (2, 6):
        state = TokenState.start(torch.randn(1, side * side + 1, 4), (side, side), 1)
        even = torch.zeros(1, 1, side * side + 1, 4)
        for threshold, kept in ((1.01, 1), (0.75, side * side + 1)):
            learned = torch.tensor([threshold], requires_grad=True)
            given = {"outputs": even + 1, "threshold": lambda learned=learned: learned}
            shown = Evidence(state.tokens, even, even, scale=1.0, **given)
            after = merge(POLICIES.build("as_vit"), shown, state, 1, relaxed=True)
            assert after.size.sum() == kept and after.num_active == side * side
            assert after.tokens.shape[1] == side * side + 1 and after.tokens.isfinite().all()


def test_a_mask_is_hard_and_has_the_gradient_of_a_sigmoid():
    logits = torch.tensor([-3.0, -0.1, 0.0, 0.2, 4.0], requires_grad=True)
    mask = straight_through(logits)
    assert mask.tolist() == [0, 0, 0, 1, 1]
    soft = logits.detach().sigmoid()
    torch.testing.assert_close(torch.autograd.grad(mask.sum(), logits)[0], soft * (1 - soft))


def test_masked_keys_count_for_themselves_alone():
    q, k, v = torch.randn(3, 2, 3, 9, 5, dtype=torch.float64).unbind()
    mask = (torch.rand(2, 9) > 0.4).double()
    mask[:, 0] = 1
    got = masked_attention(q, k, v, mask, scale=0.3)
    for image, seen in enumerate(mask > 0):
        own = slice(image, image + 1)
        part = [x[own][:, :, seen] for x in (q, k, v)]
        wanted = reference_attention(*part, None, scale=0.3)
        torch.testing.assert_close(got[own][:, :, seen], wanted)
        for token in (~seen).nonzero().flatten():
            also = seen | (torch.arange(9) == token)
            wanted = reference_attention(
                q[own][:, :, [token]], k[own][:, :, also], v[own][:, :, also], None, scale=0.3
            )
            torch.testing.assert_close(got[own][:, :, [token]], wanted)
    torch.testing.assert_close(masked_attention(q[:, :, :2], k, v, mask, scale=0.3), got[:, :, :2])


def test_a_masked_key_far_above_all_others_leaves_everything_finite():
    q, k, v = torch.randn(3, 1, 1, 4, 5).unbind()
    q, k = q.abs(), k.abs()
    k[:, :, 2] = 500
    leaves = [x.requires_grad_() for x in (q.clone(), k.clone(), v.clone(), torch.tensor([[1.0, 1, 0, 1]]))]
    output = masked_attention(*leaves, scale=1.0)
    others = reference_attention(*(x[:, :, [0, 1, 3]] for x in (q, k, v)), None, scale=1.0)
    torch.testing.assert_close(output[:, :, [0, 1, 3]], others)
    output.square().sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves) and leaves[-1].grad[0, 2] != 0


def test_rotary_positions_of_masked_patches_stay_theirs():
    prefix = "eva02: rotary positions"
    built = tiny_vit("as_vit", prefix=prefix).double()
    with_thresholds(built, [0.98] * 3)
    (image,) = images(1).double().split(1)
    with torch.no_grad():
        masked = built(image, relaxed=True).final
        left = [PATCHES, *(int(mask[:, 1:].sum()) for mask in masks(masked))]
        gone = [before - after for before, after in zip(left, left[1:], strict=False)]
        assert 0 < gone[0] and all(r <= before // 2 for r, before in zip(gone, left, strict=False)), gone
        removed = built(image, reduction=gone, relaxed=False).final
    torch.testing.assert_close(masked.tokens[:, 0], removed.tokens[:, 0], atol=1e-9, rtol=0)


def test_blocks_start_at_their_share_of_the_start():
    """0.2, 0.4 and 0.6 behind a quarter, a half and three quarters, about the authors' 0.001, 0.002 and 0.003
    of 196 patches."""
    sizes = {"patch_size": 8, "depth": 4, "embed_dim": 24, "num_heads": 2}
    blocks = tiny_vit("as_vit", timm_options=sizes).blocks
    starts = torch.cat([block.metric.threshold for block in blocks]).detach()
    torch.testing.assert_close(starts, torch.tensor([0.0, 0.2, 0.4, 0.6]))


def test_what_thresholds_keep_becomes_the_schedule():
    """As shares of any number of patches. A block removes at most half of what it has, and the next one the
    rest."""
    blocks = tiny_vit("as_vit").blocks
    with pytest.raises(ConfigError, match="reduction 'kept' is what thresholds kept in training"):
        kept_reduction(blocks, PATCHES)
    for block, shares in zip(blocks, ([1.0], [0.5], [0.25]), strict=True):
        block.metric.note(torch.tensor(shares[0]))
    assert kept_reduction(blocks, 64) == [0, 32, 16] and kept_reduction(blocks, 10) == [0, 5, 2]
    blocks[1].metric.kept.fill_(0.2)
    blocks[2].metric.kept.fill_(0.2)
    assert kept_reduction(blocks, 100) == [0, 50, 25]
    blocks[1].metric.kept.fill_(-1.0)
    assert kept_reduction(blocks, 100) == [0, 0, 50]
    with pytest.raises(ConfigError, match="has none that were"):
        kept_reduction(tiny_vit("tome").blocks, PATCHES)


def test_the_mean_share_is_that_of_the_last_micro_batches():
    threshold = Threshold(0.5)
    threshold.note(torch.tensor(0.8))
    assert threshold.kept.item() == pytest.approx(0.8)
    threshold.note(torch.tensor(0.4))
    assert threshold.kept.item() == pytest.approx(0.796)
    for _ in range(2000):
        threshold.note(torch.tensor(0.3))
    assert threshold.kept.item() == pytest.approx(0.3, abs=1e-4)


def test_thresholds_of_tasks_and_options_that_mean_nothing_are_refused():
    with pytest.raises(
        ConfigError, match="one threshold in a block for all tasks; merging.embedding is 'per_task'"
    ):
        tiny_vit("as_vit", embedding=EmbeddingSpec("per_task", ("a", "b")))
    with pytest.raises(ConfigError, match="as_vit: temperature is 0"):
        POLICIES.build("as_vit", temperature=0)
    with pytest.raises(ConfigError, match="start inf"):
        POLICIES.build("as_vit", start=float("inf"))
