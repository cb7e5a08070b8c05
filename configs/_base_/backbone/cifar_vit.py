"""A ViT of 1.2 M parameters with patches of 8 pixels and a class token."""

backbone = dict(name="vit_tiny_patch16_224", options=dict(patch_size=8, embed_dim=128, depth=6, num_heads=4))
