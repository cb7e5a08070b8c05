"""Matching of the tensors of a checkpoint with those of a model, by their keys."""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.metric import EmbeddingPerTask
from pipeline.interfaces import Task
from pipeline.parts import BALANCE, HEAD, roles_of

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|net|backbone|timm_model)\.)+")
_OF_A_TASK = re.compile(r"^tasks\.([^.]+)\.")


def plain_key(key: str) -> str:
    """The key in timm's spelling: without our `backbone.`, without the `module.` and `_orig_mod.` of
    DistributedDataParallel and torch.compile, and without what a model has around timm's (`timm_model.`)."""
    return _WRAPPERS.sub("", key)


def backbone_of(module: nn.Module) -> Backbone:
    """The backbone of a MultiTaskModel; the module itself where it is one."""
    backbone = module if isinstance(module, Backbone) else module.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    return backbone


def sources_of(
    module: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, str]]:
    """Two tables: key of the module -> plain key of the checkpoint that fills it; and, for tensors that
    depend on another number of classes, key of the module -> both shapes.

    own: tensors of the module. given: tensors of the checkpoint by plain key.
    """
    roles, heads, shared = roles_of(module), heads_of(module), _shared_keys(module)
    num_classes = {name: task.num_classes for name, task in _classifiers(module)}
    tasks = {task for task, _ in heads.values()}
    names_there = _names_in_checkpoint(tasks, given)
    sources: dict[str, str] = {}
    redrawn: dict[str, str] = {}
    for key in (key for key in own if roles[key].kind != BALANCE):
        task, part = heads.get(key, ("", ""))
        places = (plain_key(key), f"tasks.{names_there.get(task, task)}.{part}", part, shared.get(key))
        found = next((place for place in places if place in given), None)
        if found is None:
            continue
        if _of_other_classes(own[key], given[found], num_classes.get(task)):
            redrawn[key] = shapes(own[key], given[found])
        elif found != part or len(tasks) == 1 or given[found].shape == own[key].shape:
            sources[key] = found
    return sources, redrawn


def heads_of(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Key of a head's tensor -> its task, and its key within the head."""
    return {
        key: (role.owner, key.removeprefix(f"tasks.{role.owner}."))
        for key, role in roles_of(module).items()
        if role.kind == HEAD and role.owner is not None
    }


def shapes(own: Tensor, value: Tensor) -> str:
    return f"{tuple(value.shape)} in the checkpoint and {tuple(own.shape)} in the model"


def _names_in_checkpoint(tasks: set[str], given: Mapping[str, Tensor]) -> dict[str, str]:
    """Task of the model -> its name in the checkpoint, where both have exactly one; else empty."""
    theirs = {match[1] for key in given if (match := _OF_A_TASK.match(key))}
    return dict(zip(tasks, theirs, strict=True)) if len(tasks) == len(theirs) == 1 else {}


def _shared_keys(module: nn.Module) -> dict[str, str]:
    """Key of a task's own metric embedding -> plain key of the embedding that tasks share."""
    return {
        f"{name}.{key}": plain_key(f"{name}.{shared}")
        for name, part in module.named_modules()
        if isinstance(part, EmbeddingPerTask)
        for key, shared in part.shared_keys().items()
    }


def _classifiers(module: nn.Module) -> Iterator[tuple[str, Task]]:
    """Tasks that have a number of classes, by name."""
    tasks = getattr(module, "tasks", None) or {}
    return ((name, task) for name, task in tasks.items() if task.num_classes)


def _of_other_classes(own: Tensor, given: Tensor, num_classes: int | None) -> bool:
    """Whether the shapes differ in the number of classes alone."""
    if num_classes is None or own.ndim != given.ndim:
        return False
    differing = [size for size, other in zip(own.shape, given.shape, strict=True) if size != other]
    return differing == [num_classes]
