"""CoCa's text tower, decoder and pooler: open_clip's weights, with sizes of image tokens, and with keys kept
from word to word.

The parts of open_clip's modules become parts of these under their own names, so state-dict keys stay
open_clip's. B captions, I images (B is a multiple of I; captions of an image stand side by side), L words, N
image tokens, W channels, H heads, D channels per head.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.attention import proportional_attention
from pipeline.errors import ConfigError

Keys = tuple[Tensor, Tensor]
"""Keys and values [B, H, M, D]."""
Layers = tuple[Keys, ...]
"""What each layer of a stack keeps."""


@dataclass(frozen=True)
class ImageTokens:
    """What the decoder looks at, and an image's feature in the contrastive loss, not normalised.

    tokens [I, N, W]; size [I, N] float32, or None where all count once; feature [I, E] or None.
    """

    tokens: Tensor
    size: Tensor | None
    feature: Tensor | None


@dataclass(frozen=True)
class Past:
    """What the text tower and the decoder keep of the words so far, and the decoder of the images."""

    text: Layers
    decoder: Layers
    image: Layers

    def take(self, rows: Tensor) -> "Past":
        """The words of these captions [B]; they are of the same images."""
        text, decoder = (tuple((k[rows], v[rows]) for k, v in layers) for layers in (self.text, self.decoder))
        return Past(text, decoder, self.image)


class Attention(nn.Module):
    """An nn.MultiheadAttention's weights under their names."""

    in_proj_weight: Tensor
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    in_proj_bias: Tensor
    out_proj: nn.Module

    def __init__(self, attn: nn.Module):
        super().__init__()
        if not isinstance(attn, nn.MultiheadAttention):
            raise ConfigError(
                "model: captioning takes open_clip's plain blocks; leave out qk_norm, "
                "scaled_cosine_attn and their like"
            )
        _adopt(self, attn)
        self.num_heads, self.scale = attn.num_heads, attn.head_dim**-0.5

    def heads(self, x: Tensor) -> Tensor:
        """[B, M, W] -> [B, H, M, D]"""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class SelfAttention(Attention):
    def forward(self, x: Tensor, mask: Tensor | None, past: Keys | None) -> tuple[Tensor, Keys]:
        """x [B, L, W]; mask [B, 1, L, L], True where a word is seen, or None where those before it are; past:
        one word follows these."""
        q, k, v = map(self.heads, F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and past is None
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), (k, v)


class CrossAttention(Attention):
    def forward(
        self, x: Tensor, tokens: Tensor | None, size: Tensor | None, kept: Keys | None = None
    ) -> tuple[Tensor, Keys]:
        """x [B, L, W] looks at tokens [I, N, C], or at their kept keys. All captions of an image ask them
        at once."""
        (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias) = self._weights(), self.in_proj_bias.chunk(3)
        if kept is None:
            assert tokens is not None
            kept = (
                self.heads(F.linear(tokens, k_weight, k_bias)),
                self.heads(F.linear(tokens, v_weight, v_bias)),
            )
        k, v = kept
        q = self.heads(F.linear(x, q_weight, q_bias).reshape(len(k), -1, x.shape[2]))
        mixed = proportional_attention(q, k, v, size, scale=self.scale)
        return self.out_proj(mixed.transpose(1, 2).reshape(x.shape)), (k, v)

    def _weights(self) -> tuple[Tensor, ...]:
        """Of queries, keys and values; apart where image tokens have another width than words."""
        if hasattr(self, "in_proj_weight"):
            return self.in_proj_weight.chunk(3)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight


class Block(nn.Module):
    """open_clip's ResidualAttentionBlock around an attention."""

    ln_1: nn.Module
    ls_1: nn.Module
    ln_2: nn.Module
    mlp: nn.Module
    ls_2: nn.Module

    def __init__(self, block: Any, attention: type[Attention]):
        super().__init__()
        _adopt(self, block)
        self.attn = attention(block.attn)

    def behind(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.ls_1(mixed)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class SelfBlock(Block):
    def __init__(self, block: Any):
        super().__init__(block, SelfAttention)

    def forward(self, x: Tensor, mask: Tensor | None, past: Keys | None) -> tuple[Tensor, Keys]:
        mixed, keys = self.attn(self.ln_1(x), mask, past)
        return self.behind(x, mixed), keys


class CrossBlock(Block):
    ln_1_kv: nn.Module

    def __init__(self, block: Any):
        super().__init__(block, CrossAttention)

    def forward(self, x: Tensor, image: ImageTokens, kept: Keys | None) -> tuple[Tensor, Keys]:
        tokens = self.ln_1_kv(image.tokens) if kept is None else None
        mixed, keys = self.attn(self.ln_1(x), tokens, image.size, kept)
        return self.behind(x, mixed), keys


class TextTower(nn.Module):
    """open_clip's TextTransformer with a class token. Words see those before them; the class token sees all,
    and no word sees it."""

    token_embedding: nn.Module
    positional_embedding: Tensor
    cls_emb: Tensor
    ln_final: nn.Module
    text_projection: Tensor

    def __init__(self, text: Any):
        super().__init__()
        if not isinstance(text.text_projection, nn.Parameter):
            raise ConfigError(
                "model: captioning takes a text_projection that is a matrix; leave proj_type and "
                "proj_bias out of text_cfg"
            )
        _adopt(self, text)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(map(SelfBlock, text.transformer.resblocks))}
        )
        self.context_length, self.pad_id = text.context_length, text.pad_id

    def drop_feature(self) -> None:
        """Leaves out what only the feature needs."""
        self.cls_emb = self.text_projection = cast(Tensor, None)
        self.ln_final = nn.Identity()

    def forward(
        self, tokens: Tensor, past: Layers = (), *, feature: bool = False
    ) -> tuple[Tensor, Tensor | None, Layers]:
        """tokens int64 [B, L] behind those of `past` -> words [B, L, W], the caption's feature [B, E] if
        asked for, and what to keep."""
        length, start = tokens.shape[1], past[0][0].shape[2] if past else 0
        if feature:
            x, mask = self._with_class_token(tokens)
        else:
            x, mask = self.token_embedding(tokens) + self.positional_embedding[start : start + length], None
        keys = []
        for i, block in enumerate(cast(nn.ModuleList, self.transformer["resblocks"])):
            x, kept = block(x, mask, past[i] if past else None)
            keys.append(kept)
        pooled = self.ln_final(x[:, -1]) @ self.text_projection if feature else None
        return x[:, :length], pooled, tuple(keys)

    def _with_class_token(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, P + 1, W], the class token last, and who sees whom [B, 1, P + 1, P + 1].

        The class token has the place behind the longest caption, so that the feature does not depend on what
        a batch is padded to. CoCas are trained with padding masked one place too late, which lets the class
        token see the first padding, if there is one, and itself if there is none: so there is one wherever it
        fits.
        """
        tokens = F.pad(tokens, (0, 1), value=self.pad_id)[:, : self.context_length]
        place = F.pad(torch.arange(tokens.shape[1], device=tokens.device), (0, 1), value=self.context_length)
        x = (
            torch.cat([self.token_embedding(tokens), self.cls_emb.expand(len(tokens), 1, -1)], dim=1)
            + self.positional_embedding[place]
        )
        seen = F.pad(tokens != self.pad_id, (1, 0), value=True)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        return x, causal & seen[:, None, None, :]


class Decoder(nn.Module):
    """open_clip's MultimodalTransformer: words look at the words before them and at an image, in turn."""

    ln_final: nn.Module
    text_projection: Tensor

    def __init__(self, decoder: Any):
        super().__init__()
        _adopt(self, decoder)
        self.resblocks = nn.ModuleList(map(SelfBlock, decoder.resblocks))
        self.cross_attn = nn.ModuleList(map(CrossBlock, decoder.cross_attn))

    def forward(
        self, words: Tensor, image: ImageTokens, past: Past | None = None
    ) -> tuple[Tensor, Layers, Layers]:
        """words [B, L, W] -> logits of the words that follow each [B, L, V], and what to keep: of the words,
        and of the images."""
        x, of_words, of_image = words, [], []
        for i, (block, cross) in enumerate(zip(self.resblocks, self.cross_attn, strict=True)):
            x, kept = block(x, None, past.decoder[i] if past else None)
            of_words.append(kept)
            x, kept = cross(x, image, past.image[i] if past else None)
            of_image.append(kept)
        return self.ln_final(x) @ self.text_projection, tuple(of_words), tuple(of_image)


def _adopt(module: nn.Module, other: nn.Module) -> None:
    """Takes over another's parameters and parts, under their names."""
    for name, parameter in other.named_parameters(recurse=False):
        module.register_parameter(name, parameter)
    for name, part in other.named_children():
        module.add_module(name, part)
