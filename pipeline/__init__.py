"""Learned token merging for Vision Transformers, and the training around it."""

from pipeline.backbone.build import build_backbone
from pipeline.backbone.load import load_weights
from pipeline.merging.unmerge import unmerge

__all__ = ["build_backbone", "load_weights", "unmerge"]
