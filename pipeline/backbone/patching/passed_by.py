"""What somebody changed in a model of a library, and merging would pass by without a word."""

from collections.abc import Iterator

from torch import nn

from pipeline.backbone.become import host_of_block

LIBRARIES = ("timm", "transformers", "dinov2", "dinov3")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def own_members(model: nn.Module, host: type[nn.Module]) -> str | None:
    """What a subclass, or somebody who wrote to the model, gave it in place of the library's, and the host
    replaces; None where there is nothing. host: of its class."""
    kinds = type(model).__mro__
    if any(kind.__name__ == "FSDPModule" for kind in kinds):
        return "FSDP has its weights already; patch it before"
    library = next(kind for kind in kinds if _library(kind.__module__) in LIBRARIES)
    own = {name for kind in kinds if not issubclass(library, kind) for name in vars(kind)}
    replaced = {name for kind in host.__mro__ if not issubclass(library, kind) for name in vars(kind)}
    for name in sorted(replaced & {*own, *vars(model), *model._modules}):
        if not name.startswith("__"):
            return f"it has a {name} of its own, which merging would replace; patch a model without it"
    return None


def own_calls(model: nn.Module, where: str) -> str | None:
    """What happens where the library calls parts that merging calls otherwise, or not at all; None where
    nothing does. where: name of the part that has the blocks."""
    blocks = _blocks(model, where)
    if len(set(blocks)) < len(blocks):
        return "one block stands at several depths, and each merges for itself; give each a copy of its own"
    watched = {id(part) for part in _parts(model, where)}
    for name, part in model.named_modules():
        if id(part) in watched and ("forward" in vars(part) or _has_hooks(part)):
            return (
                f"{name} has a hook or a forward of its own, and merging calls it otherwise or not at all; "
                "remove it, or hook what is called (docs/models.md)"
            )
    return None


def _parts(model: nn.Module, where: str) -> Iterator[nn.Module]:
    """What is between the model and its blocks, the blocks, and what their hosts pass by."""
    names = where.split(".")
    yield from (model.get_submodule(".".join(names[:depth])) for depth in range(1, len(names) + 1))
    for block in _blocks(model, where):
        yield block
        yield from host_of_block(type(block)).passed_by(block)


def _blocks(model: nn.Module, where: str) -> list[nn.Module]:
    """In a chunk of blocks, an Identity is in the place of each block before it."""
    parts = model.get_submodule(where)._modules.values()
    return [part for part in parts if part is not None and not isinstance(part, nn.Identity)]


def _has_hooks(part: nn.Module) -> bool:
    """Whether a part has hooks, but for those by which transformers collects outputs, which stay idle."""
    hooks = (hook for kind in HOOKS for hook in getattr(part, kind).values())
    return any(_library(getattr(hook, "__module__", None)) not in LIBRARIES for hook in hooks)


def _library(module: str | None) -> str:
    return (module or "").partition(".")[0]
