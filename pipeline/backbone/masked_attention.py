"""Attention in which some tokens are masked as if they had been removed, and the masks have a gradient.

B batch, H heads, N queries, M keys, D channels per head.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.merging.rows import without_autocast
from pipeline.token_state import widened


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """[B, H, N, D]: softmax(scale * q k^T + bias) v, each exponential times the mask of its key, and times 1
    for a token's own (DynamicViT, Rao et al., NeurIPS 2021).

    mask [B, M], 0 or 1 with gradient; q [B, H, N, D]: of the first N tokens; k, v [B, H, M, D]; bias
    [B, H, M] or None. Tokens with mask 1 become what they would be without the others. The gradient of a
    mask of 0 is finite: its logit counts as at most the highest of those that are not masked. In float32 or
    wider; weights [B, H, N, M] are kept for the backward pass.
    """
    with without_autocast(q.device.type):
        logits = (widened(q) @ widened(k).mT) * scale
        if bias is not None:
            logits = logits + bias[:, :, None]
        own = torch.eye(k.shape[2], dtype=torch.bool, device=k.device)[: q.shape[2]]
        seen = own | (mask > 0)[:, None, None]
        highest = logits.detach().masked_fill(~seen, -torch.inf).amax(dim=-1, keepdim=True)
        weights = (logits - highest).clamp(max=0).exp() * torch.where(own, 1.0, mask[:, None, None])
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return (F.dropout(weights, dropout, training=dropout > 0) @ widened(v)).to(v.dtype)
