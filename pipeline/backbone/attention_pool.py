"""timm's pooling by attention (SigLIP, SigLIP2, PE) on merged tokens: a learned query attends to the tokens,
and each counts as often as it has patches. B batch, M tokens, C channels."""

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.key_weights import log_size
from pipeline.errors import ConfigError
from pipeline.token_state import TokenState


def build_attention_pool(backbone: Backbone) -> nn.Module:
    """A copy of the backbone's own, for a head. Raises ConfigError where it has none that can pool merged
    tokens."""
    module = backbone.build_attn_pool()
    if module is None:
        raise ConfigError(
            "pooling 'map' needs a backbone that pools by attention, such as vit_base_patch16_siglip_224; "
            "use pool='avg'"
        )
    if not isinstance(module, AttentionPoolLatent) or module.pos_embed is not None:
        what = type(module).__name__
        raise ConfigError(
            f"pooling by {what} cannot count merged tokens by their size; use pool='avg', or one with "
            "AttentionPoolLatent without positions of its own"
        )
    return module


def pool_by_attention(module: nn.Module, state: TokenState, *, with_prefix: bool) -> Tensor:
    """[B, C]. module: from `build_attention_pool`. with_prefix: read prefix tokens too, as PE does."""
    first = 0 if with_prefix else state.num_prefix
    tokens, size = state.tokens[:, first:], state.size[:, first:]
    return module(tokens, attn_mask=log_size(size)[:, None, None].to(tokens.dtype))


@torch.no_grad()
def pool_numbers(module: nn.Module, state: TokenState, numbers: Tensor, *, with_prefix: bool) -> Tensor:
    """[B]: numbers [B, M] of the tokens, weighed as `pool_by_attention` weighs the tokens, by the mean over
    heads and over the queries that are read."""
    assert isinstance(module, AttentionPoolLatent), "`build_attention_pool` refuses others"
    first = 0 if with_prefix else state.num_prefix
    tokens, size, numbers = state.tokens[:, first:], state.size[:, first:], numbers[:, first:]
    heads = (module.num_heads, module.head_dim)
    q = module.q_norm(module.q(module.latent).unflatten(-1, heads).transpose(1, 2))
    keys = module.kv(tokens).chunk(2, dim=-1)[0]
    k = module.k_norm(keys.unflatten(-1, heads).transpose(1, 2))
    logits = (q @ k.mT * module.scale).to(size.dtype) + log_size(size)[:, None, None]
    weights = logits.softmax(dim=-1).mean(dim=1)
    read = weights[:, :1] if module.pool == "token" else weights
    return (read.mean(dim=1) * numbers).sum(dim=-1)
