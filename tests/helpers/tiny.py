"""ViTs of a few thousand weights, and every way of merging that the laws run over."""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline import build_backbone
from pipeline.backbone.vit import MergingViT
from pipeline.merging.evidence import Evidence
from pipeline.merging.partitions import PARTITIONS
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import MergePolicy, merge
from pipeline.merging.reducer import ReducingPolicy
from pipeline.merging.schedule import mergeable, tokens_per_block
from pipeline.merging.soft import Candidates
from pipeline.merging.traits import traits_of
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.token_state import TokenState

SIZES: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3, "patch_size": 8}
IMG = 64
SEED = 1000 * int(os.environ.get("DTEM_TEST_SEED", "0"))
"""Added to every seed of the tests: what holds by chance fails with another."""

MCTF_BEHIND: dict[str, Any] = {"one_step_ahead": False, "pooling": "size"}
"""Options of mctf under which it merges between attention and MLP, and conserves the sum of tokens."""
DTEM_VARIANTS: dict[str, dict[str, Any]] = {
    "dtem_soft": {"split": "parity", "relaxation": "soft"},
    "dtem_straight_through": {"split": "parity", "relaxation": "straight_through"},
    "dtem_reference": {"split": "reference", "relaxation": "soft"},
}
OF_IMAGES = [name for name in POLICIES.names() if "clips" not in POLICIES.build(name).requires]
"""Registered policies that can merge images."""
FOR_TINY: dict[str, dict[str, Any]] = {"as_vit": {"temperature": 1.0}}
"""Options without which a tiny model, whose attention is nearly even, would be beyond a policy: its masks
would have no gradient."""
OTHER_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "evit_fused": ("evit", {"fuse": True}),
    "tofu_late": ("tofu", {"until": 0.0}),
    "mctf_behind": ("mctf", MCTF_BEHIND),
    "stvit_late": ("stvit", {"block": 2, "init_values": 1.0}),
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = (
    {name: (name, FOR_TINY.get(name, {})) for name in OF_IMAGES}
    | {name: ("dtem", options) for name, options in DTEM_VARIANTS.items()}
    | OTHER_VARIANTS
)
"""Name -> (policy, its options): every registered policy that can merge images, as it comes, and variants of
some."""
MERGING = [name for name in VARIANTS if name != "none"]
PARTITIONED: dict[str, tuple[str, dict[str, Any]]] = {
    f"{policy}_{partition}": (policy, {"partition": partition})
    for policy in ("tome", "dtem")
    for partition in PARTITIONS
    if partition != "parity"
}
"""tome and dtem under each other partition."""
WAYS = VARIANTS | PARTITIONED
MERGING_WAYS = [name for name in WAYS if name != "none"]
BUILT = {name: POLICIES.build(policy, **options) for name, (policy, options) in VARIANTS.items()}
RELAXED = [name for name, policy in BUILT.items() if policy.supports_relaxed and policy.embeds]
"""Variants whose relaxed merge teaches an embedding."""
MASKED = [name for name, policy in BUILT.items() if policy.masks]
"""Variants whose relaxed merge masks by thresholds."""
OF_CLIPS = [
    name
    for name in POLICIES.names()
    if POLICIES.build(name).requires <= traits_of(class_token=False, times=2) and POLICIES.build(name).merges
]
"""Registered policies that merge the clips of `tiny_video_vit`."""
UNLIKE_AT_ZERO = ("none", "dtem", "dtem_reference")
"""Variants that differ where nothing merges, by an embedding and by the attention of a relaxed pass. They run
on every host at r = 0, the others on one."""

PREFIXES: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "registers, no class token, average pooling": ("vit_medium_patch16_reg4_gap_256", {}),
    "no prefix, average pooling": ("vit_base_patch16_gap_224", {}),
    "mae: class token, average pooling, norm after it": (
        "vit_base_patch16_224",
        {"global_pool": "avg", "fc_norm": True},
    ),
    "clip: norm before the blocks": ("vit_base_patch16_clip_224", {}),
    "query and key norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "swiglu": ("vit_giant_patch14_dinov2", {}),
    "norm behind each half": ("vit_base_patch16_rpn_224", {}),
    "two attentions side by side": ("vit_base_patch16_18x2_224", {}),
    "attention and mlp side by side": ("vit_base_patch16_xp_224", {}),
    "attention pooling": ("vit_base_patch16_siglip_224", {}),
    "eva: bias of queries and values": ("eva_giant_patch14_224", {}),
    "eva, norm behind each half": ("eva02_enormous_patch14_clip_224", {}),
    "eva02: rotary positions": ("eva02_base_patch16_clip_224", {}),
    "dinov3: rotary positions, registers": ("vit_small_patch16_dinov3", {}),
    "sapiens2: rotary positions, keys for several queries": (
        "vit_base_patch16_sapiens2",
        {"num_kv_heads": 1, "rope_rescale_coords": 1.0},
    ),
    "pe: rotary and absolute positions, attention pooling": ("vit_pe_core_tiny_patch16_384", {}),
    "rope-vit: rotary positions of each block": ("vit_small_patch16_rope_mixed_ape_224", {}),
}
"""What is in front of the patches, and how the rest differs -> (timm name, timm options)."""
ROTARY = [name for name in PREFIXES if "rotary" in name]


def tiny_vit(
    variant: str, *, reduction: Any = 8, prefix: str = "class token", seed: int = 0, **arguments: Any
) -> MergingViT:
    """65 tokens with a class token, 3 blocks, 3 heads of 16 channels; the same weights for the same seed."""
    policy, options = WAYS[variant]
    name, timm_options = PREFIXES[prefix]
    torch.manual_seed(SEED + seed)
    arguments = (
        {"img_size": IMG}
        | arguments
        | {"timm_options": SIZES | timm_options | arguments.get("timm_options", {})}
    )
    return build_backbone(name, policy=policy, reduction=reduction, **arguments, **options)


def tiny_video_vit(policy: str, *, reduction: Any = 8, seed: int = 0, **arguments: Any) -> MergingViT:
    """64 tubelets of 2 frames and 8 x 8 pixels, in a grid of 4 x 4 x 4, without prefix; 3 blocks."""
    torch.manual_seed(SEED + seed)
    arguments = {"frames": 8, "img_size": 32} | arguments
    options = SIZES | arguments.pop("timm_options", {})
    return build_backbone(
        "vit_tiny_patch16_224", policy=policy, reduction=reduction, timm_options=options, **arguments
    )


def clips(batch: int = 2, frames: int = 8, size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(batch, frames, 3, size, size, generator=generator(seed))


@cache
def traits_of_tiny(prefix: str) -> frozenset[str]:
    """What the backbone of `tiny_vit` has, by names in TRAITS."""
    with torch.device("meta"):
        return tiny_vit("none", prefix=prefix).traits


def serves(variant: str, prefix: str) -> bool:
    """Whether the policy can merge the backbone of `tiny_vit`."""
    policy, options = VARIANTS[variant]
    return POLICIES.build(policy, **options).requires <= traits_of_tiny(prefix)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + seed)


def images(batch: int = 2, size: int = IMG, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=generator(seed))


def random_state(
    num_tokens: int = 17,
    prefix: int = 1,
    *,
    batch: int = 2,
    dim: int = 6,
    live: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> TokenState:
    """Tokens with sizes from 1 to 3, as after some merging; the source map is the identity all the same. The
    grid has rows of an even number of patches, where that is possible."""
    tokens = torch.randn(batch, num_tokens, dim, dtype=dtype)
    size = torch.randint(1, 4, (batch, num_tokens)).to(dtype)
    size[:, :prefix] = 1
    live, patches = num_tokens if live is None else live, num_tokens - prefix
    grid = next((patches // width, width) for width in (8, 4, 2, patches) if width and patches % width == 0)
    return TokenState(tokens, size, grid, prefix, live)


def evidence_of(metric: Tensor) -> Evidence:
    """Evidence in which tokens, keys, queries, outputs of heads and the learned embedding are all this metric
    [B, M, F]."""
    each = metric[:, None]
    options = {"embed": lambda _: metric, "outputs": each, "threshold": lambda: torch.ones(1)}
    return Evidence(metric, each, each, scale=1.0, **options)


def merged(
    policy: MergePolicy, state: TokenState, metric: Tensor, r: int, *, training: bool = False
) -> TokenState:
    """The state after the policy merged r tokens, told apart by a metric [B, M, F]. A policy that reduces by
    a module gets one that is the same each time."""
    possible = min(r, mergeable(state.num_active, state.num_prefix))
    if possible > 0 and not state.merges:
        state = policy.start(state)
    if isinstance(policy, ReducingPolicy):
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            reducer = policy.build_reducer(state.tokens.shape[-1], 2).to(state.tokens)
        return reducer(state, possible) if possible else state
    return merge(policy, evidence_of(metric), state, r, relaxed=training)


def counts_of(model: MergingViT, usual: Sequence[int], size: int = IMG) -> list[int]:
    """Tokens after each block of images of so many pixels: the usual ones, but of a policy that reduces in
    one block."""
    if not isinstance(model.policy, ReducingPolicy):
        return list(usual)
    side = size // model.patch_size[0]
    return list(tokens_per_block(model.schedule((side, side)), side * side + model.num_prefix))


def source_map(state: TokenState) -> Tensor:
    """[B, N, M]: how much of each input position each slot holds."""
    batch, num_tokens, _ = state.tokens.shape
    identity = torch.eye(num_tokens, dtype=state.size.dtype).expand(batch, -1, -1)
    return unmerge_tokens(identity, state.merges)


def all_edges(weights: Tensor) -> Candidates:
    """Candidates that give these shares [B, Na, Nb], each source to all destinations in their order."""
    target = torch.arange(weights.shape[-1]).expand(weights.shape)
    return Candidates(target, weights.detach(), weights)


def dense(candidates: Candidates, num_destinations: int) -> Tensor:
    """[B, Na, Nb]: the share of each source that each destination is given."""
    share = candidates.share
    whole = torch.zeros(*share.shape[:2], num_destinations, dtype=share.dtype)
    return whole.scatter(-1, candidates.target, share)


def assert_trains_on_inference(variant: str) -> None:
    """The forward pass in training, whose merges are hard, is that of inference; in float64."""
    model, batch = tiny_vit(variant, reduction=14).double(), images().double()
    with torch.no_grad():
        trained, inferred = model.train()(batch).final, model.eval()(batch).final
    live = inferred.num_active
    torch.testing.assert_close(trained.tokens[:, :live], inferred.tokens, atol=1e-9, rtol=0)
    torch.testing.assert_close(trained.size[:, :live], inferred.size, atol=1e-9, rtol=0)
    assert not trained.size[:, live:].any()
