"""One step ahead: tokens merge before their attention, by its weights, which are merged too."""

import pytest
import tiny_hugging_face
import tiny_torch_hub
import torch
from tiny import PREFIXES, generator, images, tiny_vit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dtem
from pipeline.backbone.attention import Ahead, Place, mix, reference_attention
from pipeline.backbone.rotary import Rope
from pipeline.errors import ConfigError
from pipeline.merging import evidence
from pipeline.merging.apply import apply
from pipeline.token_state import Assignment, TokenState

HEADS, TOKENS, DIM, SCALE = 3, 9, 8, 0.3
ALIKE = {"t_attention": None, "t_size": None}
"""Options by which mctf merges what is most alike."""


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def groups(weight=None):
    """Tokens 0, 2 and 3 become one; 5 and 6 another. The same in both images."""
    index = torch.tensor
    keep, source, slot = index([[1, 3, 4, 6, 7, 8]]), index([[0, 2, 5]]), index([[1, 1, 3]])
    rows = (row.expand(2, -1) for row in (keep, source, slot))
    return Assignment.of(*rows, TOKENS, **({} if weight is None else {"weight": weight}))


def dense(merge, size):
    """P [B, K, M] of 0 and 1, and the same with rows that average by weights."""
    parts = torch.zeros(2, merge.keep.shape[1], TOKENS, dtype=torch.float64)
    batch = torch.arange(2)[:, None]
    slots = torch.arange(merge.keep.shape[1]).expand(2, -1)
    parts[batch, slots, merge.keep % TOKENS] = 1
    parts[batch, merge.slot % merge.keep.shape[1], merge.source % TOKENS] = 1
    weight = size if merge.weight is None else merge.weight
    weighted = parts * weight[:, None]
    return parts, weighted / weighted.sum(dim=-1, keepdim=True)


SIZE = torch.randint(1, 5, (2, TOKENS), generator=generator(3)).double()
ANGLES = drawn(1, 1, TOKENS, DIM, seed=4)
TABLE = torch.cat([ANGLES.sin(), ANGLES.cos()], dim=-1)
ROWS = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 2], [9, 10, 11, 12, 13, 14, 15, 16, 17, 10, 10]])
WIDE = drawn(1, 1, ROWS.shape[1], DIM, seed=5)
PLACES = {
    "plain": Place(),
    "sizes": Place(SIZE),
    "rotary positions": Place(SIZE, Rope(TABLE, False)),
    "each patch at its own position": Place(
        None, Rope(torch.cat([WIDE.sin(), WIDE.cos()], dim=-1), True, rows=ROWS)
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_fused_kernel_gives_what_merged_weights_give(place, weighted):
    """A' V', where A' = mean of rows (sum of columns (A)), and its gradients; rows of A' sum to 1."""
    merge = groups(drawn(2, TOKENS, seed=6).exp() if weighted else None)
    q, k, v = (x.requires_grad_() for x in drawn(3, 2, HEADS, TOKENS, DIM, seed=1).unbind())
    v = v[:, :, : merge.keep.shape[1]]
    parts, means = (x[:, None] for x in dense(merge, SIZE))
    eye = torch.eye(TOKENS, dtype=torch.float64).expand(2, HEADS, -1, -1)
    weights = mix(q, k, eye, PLACES[place], scale=SCALE).output
    merged_weights = means @ weights @ parts.mT
    torch.testing.assert_close(merged_weights.sum(-1), torch.ones(2, HEADS, 6, dtype=torch.float64))
    found = Ahead(q, k, PLACES[place], SIZE, merge).mix(v, scale=SCALE, dropout=0.0)
    torch.testing.assert_close(found, merged_weights @ v, atol=1e-10, rtol=1e-10)
    probe = drawn(*found.shape, seed=7)
    ours, wanted = (
        torch.autograd.grad((output * probe).sum(), (q, k, v), retain_graph=True)
        for output in (found, merged_weights @ v)
    )
    torch.testing.assert_close(ours, wanted, atol=1e-10, rtol=1e-10)


def test_of_groups_of_equal_tokens_it_is_the_attention_of_the_merged_ones_by_their_sizes():
    merge = groups()
    parts, _ = dense(merge, SIZE)
    same = parts.argmax(dim=1)[:, None, :, None].expand(-1, HEADS, -1, DIM)
    small = drawn(3, 2, HEADS, 6, DIM, seed=2)
    q, k = (x.gather(2, same) for x in small[:2])
    found = Ahead(q, k, Place(SIZE), SIZE, merge).mix(small[2], scale=SCALE, dropout=0.0)
    size = (parts @ SIZE[..., None])[..., 0]
    torch.testing.assert_close(found, reference_attention(*small, size, scale=SCALE), atol=1e-10, rtol=1e-10)


KINDS = [*PREFIXES, *tiny_torch_hub.MODELS, *tiny_hugging_face.TOWERS]


def second_block(kind):
    if kind in PREFIXES:
        return tiny_vit("mctf", prefix=kind).blocks[1]
    library = tiny_torch_hub if kind in tiny_torch_hub.MODELS else tiny_hugging_face
    return dtem.patch(library.library_model(kind), "mctf", reduction=8).merging_blocks[1]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_in_every_block_equal_tokens_merge_without_a_trace(kind):
    """The block of the merged tokens, which attend by size, gives the same."""
    block = second_block(kind).double().eval()
    block.policy = type(block.policy)(**ALIKE)
    tokens = drawn(2, 8, block.width, seed=8).repeat_interleave(2, dim=1)
    state = TokenState.start(torch.cat([drawn(2, 1, block.width, seed=9), tokens], dim=1), (4, 4), 1)
    ahead = block(state, 8, Place(), relaxed=False)
    merged = apply(state, ahead.merges[0])
    assert ahead.tokens.shape[1] == 9 and merged.size[:, 1:].eq(2).all()
    behind = block(merged, 0, Place(merged.size), relaxed=False)
    torch.testing.assert_close(ahead.tokens, behind.tokens, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_block_that_only_looks_draws_nothing(kind):
    """It stops behind queries and keys, so all that is drawn is for the tokens that attend."""
    block = tiny_vit("mctf", prefix=kind, drop_path=0.5).blocks[2].train()
    before = torch.get_rng_state()
    block.attend(torch.randn(2, 8, block.width, generator=generator(4)), Place(looks=True))
    assert torch.equal(torch.get_rng_state(), before)


class Largest(TorchDispatchMode):
    """The largest tensor that a pass makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return made


def test_no_matrix_of_attention_is_made(monkeypatch):
    """[B, H, M, M] in neither pass: at most the logits of a chunk, and the similarities of M / 2 sources and
    M / 2 destinations."""
    monkeypatch.setattr(evidence, "CHUNK", 1)
    model = tiny_vit("mctf", img_size=160, reduction=[20, 20, 0])
    heads, tokens = model.blocks[0].heads[0], 401
    for training in (False, True):
        with torch.set_grad_enabled(training), Largest() as seen:
            final = model.train(training)(images(1, 160)).final
            if training:
                final.tokens.sum().backward()
        assert 0 < seen.numel < heads * tokens * tokens / 2


@pytest.mark.slow
def test_it_compiles_whole_and_is_exported():
    library, x = tiny_torch_hub.library_model("torch hub dinov2: class token"), images()
    model = dtem.patch(library, "mctf", reduction=4)
    with torch.no_grad():
        expected = model(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected, atol=1e-4, rtol=1e-4)
        shapes = (({0: torch.export.Dim("batch", min=1)},),)
        program = torch.export.export(model, (x,), dynamic_shapes=shapes)
        torch.testing.assert_close(program.module()(x[:1]), model(x[:1]), atol=1e-4, rtol=1e-4)


def test_merge_points_of_it_are_refused():
    with pytest.raises(ConfigError, match="merge points need a policy with a metric"):
        tiny_vit("mctf")(images(), merge_points_from=1)


def test_a_class_token_reads_merged_patches_in_the_last_block_too():
    """So its patches are not left out where nobody reads them afterwards."""
    model = tiny_vit("mctf", reduction=[0, 0, 8]).eval()
    with torch.no_grad():
        alone, whole = (model(images(), prefix_alone=alone).final.tokens[:, 0] for alone in (True, False))
        unmerged = model(images(), reduction=0).final.tokens[:, 0]
    torch.testing.assert_close(alone, whole)
    assert not torch.allclose(whole, unmerged, atol=1e-4)


def test_where_nothing_can_merge_the_block_is_as_it_was():
    block = tiny_vit("mctf").blocks[0].eval()
    state = TokenState.start(drawn(2, 2, block.width).float(), (1, 1), 1)
    with torch.no_grad():
        once, again = (block(state, r, Place(), relaxed=False) for r in (4, 0))
    assert torch.equal(once.tokens, again.tokens) and not once.merges
