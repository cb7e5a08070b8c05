"""Learned token merging for Vision Transformers, and the training around it.

A public name is imported when it is first asked for: `pipeline.errors` and `--help` do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.backbone.adapters.public import load_adapter, push_adapter, save_adapter
    from pipeline.backbone.auto_reduction import paying_reduction
    from pipeline.backbone.build import build_backbone
    from pipeline.backbone.patching.patch import patch, unpatch
    from pipeline.backbone.weights.load import load_weights
    from pipeline.merging.unmerge import unmerge
    from pipeline.own_loop.lightning import PhasesOfMerging
    from pipeline.own_loop.losses import distill, merge_cost
    from pipeline.own_loop.phases import embeddings_of, phase_of

__all__ = [
    "PhasesOfMerging",
    "build_backbone",
    "distill",
    "embeddings_of",
    "load_adapter",
    "load_weights",
    "merge_cost",
    "patch",
    "paying_reduction",
    "phase_of",
    "push_adapter",
    "save_adapter",
    "unmerge",
    "unpatch",
]

_MODULES = {
    "PhasesOfMerging": "pipeline.own_loop.lightning",
    "build_backbone": "pipeline.backbone.build",
    "distill": "pipeline.own_loop.losses",
    "embeddings_of": "pipeline.own_loop.phases",
    "load_adapter": "pipeline.backbone.adapters.public",
    "load_weights": "pipeline.backbone.weights.load",
    "merge_cost": "pipeline.own_loop.losses",
    "patch": "pipeline.backbone.patching.patch",
    "paying_reduction": "pipeline.backbone.auto_reduction",
    "phase_of": "pipeline.own_loop.phases",
    "push_adapter": "pipeline.backbone.adapters.public",
    "save_adapter": "pipeline.backbone.adapters.public",
    "unmerge": "pipeline.merging.unmerge",
    "unpatch": "pipeline.backbone.patching.patch",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)
