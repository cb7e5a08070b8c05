"""A model with the parts, keys and outputs of DINOv3's, in our own words. B batch, N patches, C channels."""

from functools import partial

import torch
from dinov3.layers import Mlp, PatchEmbed, RopePositionEmbedding, SelfAttentionBlock, SwiGLUFFN
from torch import nn

NORMS = {
    "layernorm": partial(nn.LayerNorm, eps=1e-6),
    "layernormbf16": partial(nn.LayerNorm, eps=1e-5),
}
FEED_FORWARDS = {"mlp": Mlp, "swiglu": SwiGLUFFN, "swiglu64": partial(SwiGLUFFN, align_to=64)}


class DinoVisionTransformer(nn.Module):
    def __init__(
        self,
        *,
        img_size=224,
        patch_size=16,
        pos_embed_rope_base=100.0,
        pos_embed_rope_rescale_coords=None,
        pos_embed_rope_dtype="bf16",
        embed_dim=768,
        depth=12,
        num_heads=12,
        ffn_ratio=4.0,
        qkv_bias=True,
        drop_path_rate=0.0,
        layerscale_init=None,
        norm_layer="layernorm",
        ffn_layer="mlp",
        n_storage_tokens=0,
        mask_k_bias=False,
        untie_cls_and_patch_norms=False,
        untie_global_and_local_cls_norm=False,
    ):
        super().__init__()
        assert pos_embed_rope_dtype == "fp32", "as torch hub makes them"
        norm = NORMS[norm_layer]
        self.embed_dim, self.patch_size, self.n_storage_tokens = embed_dim, patch_size, n_storage_tokens
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if n_storage_tokens:
            self.storage_tokens = nn.Parameter(torch.zeros(1, n_storage_tokens, embed_dim))
        self.rope_embed = RopePositionEmbedding(
            embed_dim // num_heads, pos_embed_rope_base, pos_embed_rope_rescale_coords
        )
        self.chunked_blocks = False
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(
                embed_dim,
                num_heads,
                ffn_ratio,
                qkv_bias,
                drop_path_rate,
                norm,
                FEED_FORWARDS[ffn_layer],
                layerscale_init,
                mask_k_bias,
            )
            for _ in range(depth)
        )
        self.norm, self.head = norm(embed_dim), nn.Identity()
        self.untie_cls_and_patch_norms = untie_cls_and_patch_norms
        self.untie_global_and_local_cls_norm = untie_global_and_local_cls_norm
        self.cls_norm = norm(embed_dim) if untie_cls_and_patch_norms else None
        self.local_cls_norm = norm(embed_dim) if untie_global_and_local_cls_norm else None
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))

    def init_weights(self):
        """They are drawn as the model is made."""

    def prepare_tokens_with_masks(self, x, masks=None):
        x = self.patch_embed(x)
        grid, x = x.shape[1:3], x.flatten(1, 2)
        if masks is not None:
            x = torch.where(masks[..., None], self.mask_token, x)
        first = [self.cls_token, self.storage_tokens] if self.n_storage_tokens else [self.cls_token]
        return torch.cat([*(token.expand(x.shape[0], -1, -1) for token in first), x], dim=1), grid

    def forward_features_list(self, x_list, masks_list):
        made = [self.prepare_tokens_with_masks(x, masks) for x, masks in zip(x_list, masks_list, strict=True)]
        every = [x for x, _ in made]
        for block in self.blocks:
            ropes = [self.rope_embed(H=height, W=width) for _, (height, width) in made]
            every = [block(x, rope) for x, rope in zip(every, ropes, strict=True)]
        return [
            self._features(x, masks, number)
            for number, (x, masks) in enumerate(zip(every, masks_list, strict=True))
        ]

    def _features(self, x, masks, number):
        prefix, norm = 1 + self.n_storage_tokens, self.cls_norm or self.norm
        if self.untie_global_and_local_cls_norm and self.training and number == 1:
            norm = self.local_cls_norm
        first = norm(x[:, :prefix])
        return {
            "x_norm_clstoken": first[:, 0],
            "x_storage_tokens": first[:, 1:],
            "x_norm_patchtokens": self.norm(x[:, prefix:]),
            "x_prenorm": x,
            "masks": masks,
        }

    def forward_features(self, x, masks=None):
        if isinstance(x, torch.Tensor):
            return self.forward_features_list([x], [masks])[0]
        return self.forward_features_list(x, masks)

    def _get_intermediate_layers_not_chunked(self, x, n=1):
        (x, (height, width)), found = self.prepare_tokens_with_masks(x), []
        wanted = range(len(self.blocks) - n, len(self.blocks)) if isinstance(n, int) else n
        for number, block in enumerate(self.blocks):
            x = block(x, self.rope_embed(H=height, W=width))
            found += [x] * (number in wanted)
        return found

    def get_intermediate_layers(
        self, x, *, n=1, reshape=False, return_class_token=False, return_extra_tokens=False, norm=True
    ):
        prefix, first_norm = 1 + self.n_storage_tokens, self.cls_norm or self.norm
        tokens = self._get_intermediate_layers_not_chunked(x, n)
        if norm:
            halves = [one.tensor_split([prefix], dim=1) for one in tokens]
            tokens = [torch.cat([first_norm(first), self.norm(rest)], dim=1) for first, rest in halves]
        rest = [one[:, prefix:] for one in tokens]
        if reshape:
            grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
            rest = [one.mT.unflatten(-1, grid).contiguous() for one in rest]
        more = [[one[:, 0] for one in tokens]] * return_class_token
        more += [[one[:, 1:prefix] for one in tokens]] * return_extra_tokens
        return tuple(zip(rest, *more, strict=True)) if more else tuple(rest)

    def forward(self, *inputs, is_training=False, **options):
        features = self.forward_features(*inputs, **options)
        return features if is_training else self.head(features["x_norm_clstoken"])


def dinov3_tiny(pretrained=True, weights=None, **options):
    assert not pretrained, "there are no weights"
    sizes = dict(
        img_size=64,
        patch_size=8,
        embed_dim=48,
        depth=4,
        num_heads=3,
        layerscale_init=1.0,
        n_storage_tokens=4,
        pos_embed_rope_dtype="fp32",
    )
    return DinoVisionTransformer(**sizes | options)
