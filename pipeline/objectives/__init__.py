"""Objectives: what the loss of a batch is. One file each, found by this list."""

from torch import nn

from pipeline.registry import Registry

OBJECTIVES: Registry[nn.Module] = Registry("objective")

from pipeline.objectives import distill, merge_cost, supervised  # noqa: E402, F401  (registration)
