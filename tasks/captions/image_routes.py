"""Two routes from a backbone's merged tokens to the image tokens of a caption decoder.

B images, M merged tokens, N image tokens, E embedding.
"""

from typing import Protocol

import torch
from torch import nn

from pipeline.backbone.backbone import Backbone
from pipeline.token_state import TokenState
from tasks.captions.towers import CrossAttention, ImageTokens
from tasks.shared.pooling import pool


class CoCaPooler(Protocol):
    """open_clip's AttentionalPooler."""

    query: nn.Parameter
    ln_q: nn.Module
    attn: nn.MultiheadAttention


class Pooler(nn.Module):
    """CoCa's pooler: learned queries attend to the merged tokens, each of which counts by its size. The
    result of the first query is the feature.

    query, attn, ln_q, ln_k are open_clip's `visual.attn_pool.*`; ln_post and proj are its `visual.ln_post`
    and `visual.proj`. ln_k is the backbone's last norm where it has one.
    """

    def __init__(self, pooler: CoCaPooler, backbone: Backbone, width: int, embed_dim: int):
        super().__init__()
        self.query, self.ln_q = pooler.query, pooler.ln_q
        self.attn = CrossAttention(pooler.attn)
        self.ln_k = nn.LayerNorm(backbone.embed_dim) if backbone.norm_after_pool else nn.Identity()
        self.ln_post = nn.LayerNorm(width)
        self.proj: nn.Parameter | None = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)

    def forward(self, state: TokenState) -> ImageTokens:
        query = self.ln_q(self.query).expand(len(state.tokens), -1, -1)
        tokens = self.ln_post(self.attn(query, self.ln_k(state.tokens), state.size)[0])
        return ImageTokens(tokens[:, 1:], None, None if self.proj is None else tokens[:, 0] @ self.proj)

    def drop_feature(self) -> None:
        self.proj = None


class Direct(nn.Module):
    """The direct route, as in GIT: the decoder attends to the merged tokens themselves, by their sizes. The
    fewer they are, the less it costs."""

    def __init__(self, backbone: Backbone, width: int, embed_dim: int):
        super().__init__()
        self.pool = backbone.global_pool
        self.norm = nn.LayerNorm(backbone.embed_dim) if backbone.norm_after_pool else nn.Identity()
        self.projection = nn.Linear(backbone.embed_dim, width)
        self.proj: nn.Parameter | None = nn.Parameter(
            torch.randn(backbone.embed_dim, embed_dim) * backbone.embed_dim**-0.5
        )

    def forward(self, state: TokenState) -> ImageTokens:
        state = state.with_tokens(self.norm(state.tokens))
        feature = None if self.proj is None else pool(state, self.pool) @ self.proj
        return ImageTokens(self.projection(state.tokens), state.size, feature)

    def drop_feature(self) -> None:
        self.proj = None
