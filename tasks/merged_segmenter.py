"""Segmenter's mask transformer on merged tokens: its own weights, fewer tokens.

With hard merging this equals the decoder on copies of the tokens, which attention cannot tell from one token of their number: a key
of size s counts s times. B batch, M slots, N patches, C channels, K classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbone.attention import log_size
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.token_state import TokenState

HEAD = "SegmenterMaskTransformerHead"


def decode_merged(head: Any, state: TokenState) -> Tensor:
    """Logits [B, K, h, w]. head: mmseg's SegmenterMaskTransformerHead. Prefix tokens take no part."""
    tokens = head.dec_proj(state.patch_tokens)
    classes = head.cls_emb.expand(len(tokens), -1, -1)
    tokens = torch.cat([tokens, classes], dim=1)
    size = F.pad(state.patch_size, (0, head.num_classes), value=1.0)
    for layer in head.layers:
        tokens = _layer(layer, tokens, log_size(size))
    tokens = head.decoder_norm(tokens)
    patches = F.normalize(head.patch_proj(tokens[:, : -head.num_classes]), dim=2)
    classes = F.normalize(head.classes_proj(tokens[:, -head.num_classes :]), dim=2)
    logits = head.mask_norm(patches @ classes.mT)
    with_prefix = F.pad(logits, (0, 0, state.num_prefix, 0))
    return unmerge_tokens(with_prefix, state.source)[:, state.num_prefix :].mT.unflatten(2, state.grid)


def _layer(layer: Any, tokens: Tensor, bias: Tensor) -> Tensor:
    """mmseg's TransformerEncoderLayer with a bias [B, L] on the attention logits of each key."""
    wrapped = layer.attn
    x = layer.norm1(tokens).transpose(0, 1)
    mixed, _ = wrapped.attn(x, x, x, key_padding_mask=bias, need_weights=False)
    tokens = tokens + wrapped.dropout_layer(wrapped.proj_drop(mixed.transpose(0, 1)))
    return layer.ffn(layer.norm2(tokens), identity=tokens)
