"""A model with the parts, keys and outputs of DINOv2's, in our own words. B batch, N patches, C channels."""

from functools import partial

import torch
from dinov2.layers import Attention, MemEffAttention, Mlp, NestedTensorBlock, PatchEmbed, SwiGLUFFNFused
from torch import nn
from torch.nn import functional as F


class BlockChunk(nn.ModuleList):
    def forward(self, x):
        for block in self:
            x = block(x)
        return x


class DinoVisionTransformer(nn.Module):
    def __init__(
        self,
        img_size=224,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4.0,
        drop_path_rate=0.0,
        init_values=None,
        block_fn=partial(NestedTensorBlock, attn_class=Attention),  # noqa: B008
        ffn_layer="mlp",
        block_chunks=1,
        num_register_tokens=0,
    ):
        super().__init__()
        self.embed_dim, self.patch_size = embed_dim, patch_size
        self.num_register_tokens, self.chunked_blocks = num_register_tokens, block_chunks > 0
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (img_size // patch_size) ** 2, embed_dim))
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, num_register_tokens, embed_dim)) if num_register_tokens else None
        )
        feed_forward = Mlp if ffn_layer == "mlp" else SwiGLUFFNFused
        blocks = [
            block_fn(
                dim=embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                drop_path=rate,
                init_values=init_values,
                ffn_layer=feed_forward,
            )
            for rate in torch.linspace(0, drop_path_rate, depth, dtype=torch.float64).tolist()
        ]
        if block_chunks:
            size = depth // block_chunks
            starts = range(0, depth, size)
            blocks = [BlockChunk([nn.Identity()] * i + blocks[i : i + size]) for i in starts]
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(embed_dim, eps=1e-6), nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))

    def init_weights(self):
        """They are drawn as the model is made."""

    def prepare_tokens_with_masks(self, x, masks=None):
        height, width = (side // self.patch_size for side in x.shape[-2:])
        x = self.patch_embed(x)
        if masks is not None:
            x = torch.where(masks[..., None], self.mask_token, x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self._positions(height, width)
        registers = [] if self.register_tokens is None else [self.register_tokens.expand(x.shape[0], -1, -1)]
        return torch.cat([x[:, :1], *registers, x[:, 1:]], dim=1)

    def _positions(self, height, width):
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = round(rest.shape[1] ** 0.5)
        if (height, width) == (side, side):
            return self.pos_embed
        grid = rest.mT.unflatten(-1, (side, side))
        grid = F.interpolate(grid, size=(height, width), mode="bicubic")
        return torch.cat([first, grid.flatten(2).mT], dim=1)

    def forward_features(self, x, masks=None):
        x = self.prepare_tokens_with_masks(x, masks)
        for block in self.blocks:
            x = block(x)
        normed, prefix = self.norm(x), 1 + self.num_register_tokens
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:prefix],
            "x_norm_patchtokens": normed[:, prefix:],
            "x_prenorm": x,
            "masks": masks,
        }

    def _get_intermediate_layers_not_chunked(self, x, n=1):
        x, found = self.prepare_tokens_with_masks(x), []
        wanted = range(len(self.blocks) - n, len(self.blocks)) if isinstance(n, int) else n
        for number, block in enumerate(self.blocks):
            x = block(x)
            found += [x] * (number in wanted)
        return found

    def _get_intermediate_layers_chunked(self, x, n=1):
        x, found, number = self.prepare_tokens_with_masks(x), [], 0
        depth = len(self.blocks[-1])
        wanted = range(depth - n, depth) if isinstance(n, int) else n
        for chunk in self.blocks:
            for block in chunk[number:]:
                x = block(x)
                found += [x] * (number in wanted)
                number += 1
        return found

    def get_intermediate_layers(self, x, n=1, reshape=False, return_class_token=False, norm=True):
        chunked = self.chunked_blocks
        own = self._get_intermediate_layers_chunked if chunked else self._get_intermediate_layers_not_chunked
        tokens = [self.norm(one) if norm else one for one in own(x, n)]
        first, rest = (
            [one[:, 0] for one in tokens],
            [one[:, 1 + self.num_register_tokens :] for one in tokens],
        )
        if reshape:
            grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
            rest = [one.mT.unflatten(-1, grid).contiguous() for one in rest]
        return tuple(zip(rest, first, strict=True)) if return_class_token else tuple(rest)

    def forward(self, *inputs, is_training=False, **options):
        features = self.forward_features(*inputs, **options)
        return features if is_training else self.head(features["x_norm_clstoken"])


def dinov2_tiny(pretrained=True, **options):
    assert not pretrained, "there are no weights"
    sizes = dict(
        img_size=64, patch_size=8, embed_dim=48, depth=4, num_heads=3, init_values=1.0, block_chunks=0
    )
    block = partial(NestedTensorBlock, attn_class=MemEffAttention)
    return DinoVisionTransformer(block_fn=block, **sizes | options)
