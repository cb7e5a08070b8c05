"""The public names, under one name for a package index. `pipeline`, `tasks` and `launch` are the house behind
it."""

from typing import TYPE_CHECKING, Any

import pipeline
from pipeline.later import when_imported
from pipeline.version import VERSION as __version__

if TYPE_CHECKING:
    from launch.predict.loaded import load_run
    from pipeline import (
        PhasesOfMerging,
        build_backbone,
        distill,
        embeddings_of,
        load_adapter,
        load_weights,
        merge_cost,
        patch,
        paying_reduction,
        phase_of,
        push_adapter,
        save_adapter,
        unmerge,
        unpatch,
    )

__all__ = [
    "PhasesOfMerging",
    "__version__",
    "build_backbone",
    "distill",
    "embeddings_of",
    "load_adapter",
    "load_run",
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


def __getattr__(name: str) -> Any:
    """A public name, which imports torch when it is asked for."""
    if name == "load_run":
        from launch.predict.loaded import load_run

        return load_run
    if name not in pipeline.__all__:
        raise AttributeError(f"module 'dtem' has no attribute '{name}'")
    return getattr(pipeline, name)


def _name_models() -> None:
    """Registers timm's names of models that merge, `NAME_dtem`."""
    from pipeline.backbone.timm_names import register_names

    register_names()


when_imported("timm", _name_models)
