"""Merging blocks of each family. A new family is a file here and its line."""

from pipeline.backbone.hosts import dino_blocks, eva_blocks, parallel_blocks, timm_blocks

__all__ = ["dino_blocks", "eva_blocks", "parallel_blocks", "timm_blocks"]
