"""CoCa's text tower, decoder and cross-attention with open_clip's weights, sizes of image tokens, and a cache
of keys and values.

The parts of open_clip's modules become parts of these under their own names, so state-dict keys stay
open_clip's. B captions, I images (B is a multiple of I; captions of an image stand side by side), L words, N
image tokens, W channels, H heads, D channels per head.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.attention import proportional_attention
from pipeline.errors import ConfigError

Keys = tuple[Tensor, Tensor]
"""Keys and values [B, H, M, D]."""
Layers = tuple[Keys, ...]
"""Keys and values of each layer of a stack."""


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of images that the decoder attends to, and their features."""

    tokens: Tensor
    """[I, N, W]"""
    size: Tensor | None
    """[I, N] float32; None where all tokens count once."""
    feature: Tensor | None
    """[I, E], not normalised, for the contrastive loss; None without it."""


@dataclass(frozen=True)
class Past:
    """The cache of keys and values: of the words so far in the text tower and the decoder, and of the images
    in the decoder."""

    text: Layers
    decoder: Layers
    image: Layers

    def take(self, rows: Tensor) -> "Past":
        """The cache of these captions, int64 [B], of the same images."""
        text, decoder = (tuple((k[rows], v[rows]) for k, v in layers) for layers in (self.text, self.decoder))
        return Past(text, decoder, self.image)


class Attention(nn.Module):
    """The weights of an nn.MultiheadAttention under their names."""

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
        """x [B, L, W]. mask [B, 1, L, L]: True where a word is seen; None: each word sees those before it.
        past: keys and values of earlier words, which one word follows. Returns the output, and all keys and
        values."""
        q, k, v = map(self.heads, F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and past is None
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), (k, v)


class CrossAttention(Attention):
    def forward(
        self, x: Tensor, tokens: Tensor | None, size: Tensor | None, cached: Keys | None = None
    ) -> tuple[Tensor, Keys]:
        """Attends from x [B, L, W] to tokens [I, N, C], or to their cached keys and values. Returns the
        output, and the keys and values. All captions of an image share them."""
        (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias) = self._weights(), self.in_proj_bias.chunk(3)
        if cached is None:
            assert tokens is not None
            cached = (
                self.heads(F.linear(tokens, k_weight, k_bias)),
                self.heads(F.linear(tokens, v_weight, v_bias)),
            )
        k, v = cached
        q = self.heads(F.linear(x, q_weight, q_bias).reshape(len(k), -1, x.shape[2]))
        mixed = proportional_attention(q, k, v, size, scale=self.scale)
        return self.out_proj(mixed.transpose(1, 2).reshape(x.shape)), (k, v)

    def _weights(self) -> tuple[Tensor, ...]:
        """Weights of queries, keys and values, which are separate parameters if image tokens have another
        width than words."""
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

    def __init__(self, block: nn.Module, attention: type[Attention]):
        super().__init__()
        _adopt(self, block)
        self.attn = attention(block.get_submodule("attn"))

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output, from its input and the output of its attention."""
        x = x + self.ls_1(mixed)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class SelfBlock(Block):
    def __init__(self, block: nn.Module):
        super().__init__(block, SelfAttention)

    def forward(self, x: Tensor, mask: Tensor | None, past: Keys | None) -> tuple[Tensor, Keys]:
        mixed, keys = self.attn(self.ln_1(x), mask, past)
        return self.finish(x, mixed), keys


class CrossBlock(Block):
    ln_1_kv: nn.Module

    def __init__(self, block: nn.Module):
        super().__init__(block, CrossAttention)

    def forward(self, x: Tensor, image: ImageTokens, cached: Keys | None) -> tuple[Tensor, Keys]:
        tokens = self.ln_1_kv(image.tokens) if cached is None else None
        mixed, keys = self.attn(self.ln_1(x), tokens, image.size, cached)
        return self.finish(x, mixed), keys


class TextTower(nn.Module):
    """open_clip's TextTransformer with a class token. Words see those before them; the class token sees all,
    and no word sees it."""

    token_embedding: nn.Module
    positional_embedding: Tensor
    cls_emb: Tensor
    ln_final: nn.Module
    text_projection: Tensor

    def __init__(self, text: nn.Module, context_length: int, pad_id: int):
        super().__init__()
        if not isinstance(text.text_projection, nn.Parameter):
            raise ConfigError(
                "model: captioning takes a text_projection that is a matrix; leave proj_type and "
                "proj_bias out of text_cfg"
            )
        _adopt(self, text)
        blocks = map(SelfBlock, text.get_submodule("transformer.resblocks").children())
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.context_length, self.pad_id = context_length, pad_id

    def drop_feature(self) -> None:
        """Removes the parts that only the feature needs."""
        self.cls_emb = self.text_projection = cast(Tensor, None)
        self.ln_final = nn.Identity()

    def forward(
        self, tokens: Tensor, past: Layers = (), *, feature: bool = False
    ) -> tuple[Tensor, Tensor | None, Layers]:
        """tokens: int64 [B, L], which follow those of `past`. Returns words [B, L, W], the feature of each
        caption [B, E] or None, and the keys and values of each layer."""
        length, start = tokens.shape[1], past[0][0].shape[2] if past else 0
        if feature:
            x, mask = self._with_class_token(tokens)
        else:
            x, mask = self.token_embedding(tokens) + self.positional_embedding[start : start + length], None
        keys = []
        for i, block in enumerate(cast(nn.ModuleList, self.transformer["resblocks"])):
            x, own = block(x, mask, past[i] if past else None)
            keys.append(own)
        pooled = self.ln_final(x[:, -1]) @ self.text_projection if feature else None
        return x[:, :length], pooled, tuple(keys)

    def _with_class_token(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, P + 1, W], the class token last, and the mask [B, 1, P + 1, P + 1], True where a row
        sees a column.

        The class token has the position after the longest caption, so that the feature does not depend on the
        padding of a batch. CoCas are trained with padding masked one position too late: the class token sees
        the first padding if there is one, and else itself. So there is one padding wherever it fits.
        """
        tokens = F.pad(tokens, (0, 1), value=self.pad_id)[:, : self.context_length]
        place = F.pad(torch.arange(tokens.shape[1], device=tokens.device), (0, 1), value=self.context_length)
        class_token = self.cls_emb.expand(len(tokens), 1, -1)
        x = torch.cat([self.token_embedding(tokens), class_token], dim=1) + self.positional_embedding[place]
        seen = F.pad(tokens != self.pad_id, (1, 0), value=True)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        return x, causal & seen[:, None, None, :]


class Decoder(nn.Module):
    """open_clip's MultimodalTransformer: words attend to earlier words and to an image, in turn."""

    ln_final: nn.Module
    text_projection: Tensor

    def __init__(self, decoder: nn.Module):
        super().__init__()
        _adopt(self, decoder)
        self.resblocks = nn.ModuleList(map(SelfBlock, decoder.get_submodule("resblocks").children()))
        self.cross_attn = nn.ModuleList(map(CrossBlock, decoder.get_submodule("cross_attn").children()))

    def forward(
        self, words: Tensor, image: ImageTokens, past: Past | None = None
    ) -> tuple[Tensor, Layers, Layers]:
        """Logits [B, L, V] of the word after each of words [B, L, W]; and keys and values of each layer, of
        the words and of the images."""
        x, of_words, of_image = words, [], []
        for i, (block, cross) in enumerate(zip(self.resblocks, self.cross_attn, strict=True)):
            x, own = block(x, None, past.decoder[i] if past else None)
            of_words.append(own)
            x, own = cross(x, image, past.image[i] if past else None)
            of_image.append(own)
        return self.ln_final(x) @ self.text_projection, tuple(of_words), tuple(of_image)


def _adopt(module: nn.Module, other: nn.Module) -> None:
    """Registers the parameters and parts of `other` in `module`, under their names."""
    for name, parameter in other.named_parameters(recurse=False):
        module.register_parameter(name, parameter)
    for name, part in other.named_children():
        module.add_module(name, part)
