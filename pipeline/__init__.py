"""Learned token merging for Vision Transformers, and the training around it."""
