"""The names that a config may give: models, policies, tasks, objectives, heads, and the project's configs."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.config.shipped import SCOPE, first_line, runs
from pipeline.registry import Registry

Row = tuple[str, str]
"""A name, and a line about it."""


def rows_of(kind: str, text: str = "") -> list[Row]:
    """The names of a kind (one of KINDS) with a line each. text: only those that contain it, in the name or
    in the line, in upper or lower case."""
    wanted = text.lower()
    return [row for row in KINDS[kind]() if wanted in f"{row[0]} {row[1]}".lower()]


def _registered(registry: Registry[Any]) -> Iterator[Row]:
    for name in registry.names():
        yield name, summary(registry.get(name))


def summary(thing: Any) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return text.partition(". ")[0].removesuffix(".")


def _models() -> Iterator[Row]:
    from pipeline.backbone.build import BACKBONES
    from pipeline.backbone.timm_names import plain_names

    return ((name, "") for name in sorted([*plain_names(), *BACKBONES.names()]))


def _policies() -> Iterator[Row]:
    from pipeline.merging.policies import POLICIES

    return _registered(POLICIES)


def _tasks() -> Iterator[Row]:
    import tasks  # noqa: F401 - fills the registry
    from pipeline.model import TASKS

    return _registered(TASKS)


def _objectives() -> Iterator[Row]:
    from pipeline.objectives import OBJECTIVES

    return _registered(OBJECTIVES)


def _heads() -> Iterator[Row]:
    """The heads of each task, which options of `tasks.NAME.head` choose."""
    from tasks.shared.pooling import POOLS

    for pool in (*POOLS, "map"):
        yield f"pool={pool}", "classification: how the tokens become one"
    for route, how in (("pooler", "CoCa's pooled tokens"), ("direct", "the merged tokens")):
        yield f"route={route}", f"captioning: what the decoder looks at: {how}"
    try:
        from tasks.mmseg_bridge.heads import HEADS, NECKS
    except ImportError as err:
        yield "decode_head", f"segmentation: MMSegmentation's heads, which are not installed ({err})"
        return
    for name in sorted(HEADS):
        yield f"decode_head.type={name}", "segmentation: of MMSegmentation"
    for name in sorted(NECKS):
        yield f"neck.type={name}", "segmentation: of MMSegmentation"


def _configs() -> Iterator[Row]:
    for name in runs():
        yield f"{SCOPE}{name}", first_line(name)


KINDS: dict[str, Callable[[], Iterator[Row]]] = {
    "models": _models,
    "policies": _policies,
    "tasks": _tasks,
    "objectives": _objectives,
    "heads": _heads,
    "configs": _configs,
}
