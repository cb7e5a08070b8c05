"""Merging blocks of each family. A new family is a file here and its line."""

from pipeline.backbone.hosts import eva_blocks, parallel_blocks, timm_blocks

__all__ = ["eva_blocks", "parallel_blocks", "timm_blocks"]
