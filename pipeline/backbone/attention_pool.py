"""timm's pooling by attention (SigLIP, SigLIP2, PE) on merged tokens: a learned query attends to the tokens,
and each counts as often as it has patches. B batch, M tokens, C channels."""

from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from pipeline.backbone.key_weights import log_size
from pipeline.backbone.vit import MergingViT
from pipeline.errors import ConfigError
from pipeline.token_state import TokenState


def build_attention_pool(backbone: MergingViT) -> nn.Module:
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
