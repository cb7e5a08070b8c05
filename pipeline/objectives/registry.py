"""The names of objectives. Filled by `pipeline.objectives`; import it from there."""

from torch import nn

from pipeline.registry import Registry

OBJECTIVES: Registry[nn.Module] = Registry("objective")
