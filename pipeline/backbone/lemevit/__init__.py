"""LeMeViT (Jiang et al., IJCAI 2024): image tokens and a few learned meta tokens that ask one another. Its
names are in BACKBONES once this is imported."""

from pipeline.backbone.lemevit import sizes

__all__ = ["sizes"]
