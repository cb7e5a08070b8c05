"""Segmenter's mask transformer on merged tokens: the same weights, fewer tokens.

With hard merging the result equals that of the decoder on copies of the tokens, as attention cannot tell s
copies of a key from one of size s. B batch, M slots, K classes, L = merged patches + K, C channels, h w
patches.
"""

import torch
from mmseg.models.backbones.vit import TransformerEncoderLayer
from mmseg.models.decode_heads.segmenter_mask_head import SegmenterMaskTransformerHead
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.attention import proportional_attention
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.token_state import TokenState

HEAD = "SegmenterMaskTransformerHead"


def decode_merged(head: nn.Module, state: TokenState) -> Tensor:
    """Logits [B, K, h, w]. head: mmseg's SegmenterMaskTransformerHead. Prefix tokens are left out; a class
    embedding has size 1."""
    assert isinstance(head, SegmenterMaskTransformerHead)
    tokens = head.dec_proj(state.patch_tokens)
    tokens = torch.cat([tokens, head.cls_emb.expand(len(tokens), -1, -1)], dim=1)
    size = F.pad(state.patch_size, (0, head.num_classes), value=1.0)
    for layer in head.layers:
        assert isinstance(layer, TransformerEncoderLayer)
        tokens = _layer(layer, tokens, size)
    tokens = head.decoder_norm(tokens)
    patches = F.normalize(head.patch_proj(tokens[:, : -head.num_classes]), dim=2)
    classes = F.normalize(head.classes_proj(tokens[:, -head.num_classes :]), dim=2)
    logits = head.mask_norm(patches @ classes.mT)
    with_prefix = F.pad(logits, (0, 0, state.num_prefix, 0))
    return unmerge_tokens(with_prefix, state.merges)[:, state.num_prefix :].mT.unflatten(2, state.grid)


def _layer(layer: TransformerEncoderLayer, tokens: Tensor, size: Tensor) -> Tensor:
    """Runs mmseg's TransformerEncoderLayer with sizes. tokens [B, L, C], size [B, L] -> [B, L, C]."""
    wrapped, attn = layer.attn, layer.attn.attn
    qkv = F.linear(layer.norm1(tokens), attn.in_proj_weight, attn.in_proj_bias)
    qkv = qkv.unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
    dropout = attn.dropout if attn.training else 0.0
    q, k, v = qkv.unbind(0)
    scale = attn.head_dim**-0.5
    mixed = proportional_attention(q, k, v, size, scale=scale, dropout=dropout, packed=qkv)
    mixed = attn.out_proj(mixed.transpose(1, 2).flatten(2))
    tokens = tokens + wrapped.dropout_layer(wrapped.proj_drop(mixed))
    return layer.ffn(layer.norm2(tokens), identity=tokens)
