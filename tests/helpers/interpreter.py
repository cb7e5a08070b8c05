"""Imported before anything imports Triton: where no GPU is, Triton's interpreter runs our kernels."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where kernels run in tests."""
