"""A ViT of 0.2 M parameters for 64x64 scenes: 64 patches of 8 pixels, averaged."""

backbone = dict(
    name="vit_tiny_patch16_224",
    img_size=64,
    options=dict(patch_size=8, embed_dim=64, depth=4, num_heads=2, class_token=False, global_pool="avg"),
)
