"""Weights into a backbone or a whole model, whatever style their keys are in."""

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from pipeline.backbone.metric import EmbeddingPerTask
from pipeline.backbone.openmmlab import openmmlab_weights
from pipeline.backbone.vit import MergingViT
from pipeline.backbone.weight_files import Grid
from pipeline.errors import CheckpointError
from pipeline.parts import BALANCE, BASE, HEAD, roles_of

log = logging.getLogger(__name__)

DIALECTS: list[Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor] | None]] = [openmmlab_weights]
"""Each puts the state dict of another project into our keys for a module, or gives None for one that is not
that project's. The package `tasks` adds to them."""
FILLED = 0.9
"""Of a backbone's numbers, metric embeddings apart: weights that fill fewer are of another architecture, or
have keys of a style that is not known."""
_RELEASE_LAYER = re.compile(r"^(.*blocks\.\d+\.)attn\.qkv\.(qkv_layer|metric_layer)\.(weight|bias)$")
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_GIVEN_HEAD = re.compile(r"^tasks\.([^.]+)\.")


@dataclass(frozen=True)
class LoadReport:
    """sources: parameter of the module -> key of the checkpoint that it got its value from. missing: those
    that kept theirs. left: given keys that nothing wanted. redrawn: of `missing`, what depends on another
    number of classes -> both shapes. grids: of the position embedding before and after, where it was
    resampled. heads: task -> where in the checkpoint its head was found; empty for a classifier."""

    sources: Mapping[str, str]
    missing: tuple[str, ...]
    left: tuple[str, ...]
    redrawn: Mapping[str, str] = field(default_factory=dict)
    grids: tuple[Grid, Grid] | None = None
    heads: Mapping[str, str] = field(default_factory=dict)

    @property
    def taken(self) -> tuple[str, ...]:
        return tuple(self.sources)

    def __str__(self) -> str:
        def some(names: list[str] | tuple[str, ...]) -> str:
            return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "none"

        heads = "".join(
            f"; the head of {task} from {place or 'a classifier'}" for task, place in self.heads.items()
        )
        drawn = "".join(f"; {name} is drawn anew: {shapes}" for name, shapes in self.redrawn.items())
        missing = some([name for name in self.missing if name not in self.redrawn])
        grids = (
            "; positions from a grid of {}x{} to {}x{}".format(*self.grids[0], *self.grids[1])
            if self.grids
            else ""
        )
        took = f"took {len(self.sources)} tensors{heads}{grids}{drawn}"
        return f"{took}; kept own values: {missing}; left unused: {some(self.left)}"


def load_weights(
    module: nn.Module, state_dict: Mapping[str, Tensor], *, grid: Grid | None = None
) -> LoadReport:
    """Copies what fits into a MergingViT or MultiTaskModel, in place. Keys may be timm's, ours, those of the
    authors' DTEM release, or another project's in DIALECTS.

    A position embedding of another grid is resampled; `grid` is that of the checkpoint, (rows, columns), and
    None is what its file says, else a square. A timm classifier finds the head with its names: of the only
    task, or of all tasks whose head has its shapes. A head of another model finds the task of its own name;
    where both models have one task, that one. What depends on another number of classes stays as it was
    drawn, as with timm's `num_classes`. What weighs the losses belongs to a run and stays as it is. Raises
    CheckpointError where nothing fits, where some of the backbone is filled but most of it is not, or where a
    tensor has another shape, naming the first; the module is then as it was.
    """
    own = dict(module.state_dict(keep_vars=True))
    grid = grid or getattr(state_dict, "grid", None)
    state_dict = next(
        (read for dialect in DIALECTS if (read := dialect(state_dict, module)) is not None), state_dict
    )
    given = _release_to_timm({_plain(key): value for key, value in state_dict.items()})
    roles, heads = roles_of(module), _heads(module)
    sources, redrawn = _sources(module, own, given)
    fitting = {key: given[source] for key, source in sources.items()}
    if not fitting:
        raise CheckpointError(
            f"no key of the checkpoint fits this model: it has {next(iter(given), 'none')}, the model "
            f"{next(iter(own))}"
        )
    backbone = backbone_of(module)
    left = tuple(key for key in given if key not in set(sources.values()))
    if any(roles[key].kind == BASE for key in sources):
        check_filled(module, sources, f"tensors such as {left[0]}" if left else "the tensors")
    spare = {
        match[1] for key in left if (match := _BLOCK.match(key)) and int(match[1]) >= len(backbone.blocks)
    }
    grids = None
    if place := next((key for key in fitting if key.removeprefix("backbone.") == "pos_embed"), None):
        fitting[place], grids = _resampled(fitting[place], own[place], backbone, grid)
    ready = {key: _checked(key, own[key], value) for key, value in fitting.items()}
    with torch.no_grad():
        for key, value in ready.items():
            own[key].copy_(value)
    if spare:
        numbers = len(spare), len(backbone.blocks)
        log.warning(
            "the weights have %d blocks more than the model, which has %d: the last ones are not used",
            *numbers,
        )
    places = {
        heads[key][0]: name.removesuffix(heads[key][1]).rstrip(".")
        for key, name in sources.items()
        if key in heads
    }
    missing = tuple(key for key in own if key not in fitting)
    return LoadReport(sources, missing, left, redrawn, grids, places)


def check_filled(module: nn.Module, filled: Mapping[str, Any], source: str) -> None:
    """filled: keys of the module that got a value. Raises CheckpointError where most of its backbone did
    not."""
    roles = roles_of(module)
    own = {key: value.numel() for key, value in module.state_dict().items() if roles[key].kind == BASE}
    share = sum(number for key, number in own.items() if key in filled) / sum(own.values())
    if share < FILLED:
        lacking = next(key for key in own if key not in filled)
        raise CheckpointError(
            f"{source} fill {share:.0%} of the backbone's numbers, and not {lacking}: another "
            "architecture, or keys of a "
            "style that is not known; give weights with timm's, mmseg's, mmpretrain's, open_clip's or "
            "our own keys, "
            "of the model in backbone.name and backbone.options"
        )


def _heads(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Of each key of a head, its task and the key within the head."""
    return {
        key: (role.owner, key.removeprefix(f"tasks.{role.owner}."))
        for key, role in roles_of(module).items()
        if role.kind == HEAD and role.owner is not None
    }


def _shared_keys(module: nn.Module) -> dict[str, str]:
    """Of each key of a task's own embedding, the plain key of a shared one."""
    return {
        f"{name}.{key}": _plain(f"{name}.{shared}")
        for name, part in module.named_modules()
        if isinstance(part, EmbeddingPerTask)
        for key, shared in part.shared_keys().items()
    }


def _classifiers(module: nn.Module) -> list[tuple[str, Any]]:
    """Tasks with a number of classes."""
    tasks = getattr(module, "tasks", None) or {}
    return [(name, task) for name, task in tasks.items() if hasattr(task, "num_classes")]


def backbone_of(module: nn.Module) -> MergingViT:
    """Of a MultiTaskModel, or the module itself."""
    backbone = module if isinstance(module, MergingViT) else module.get_submodule("backbone")
    assert isinstance(backbone, MergingViT)
    return backbone


def _plain(key: str) -> str:
    """timm's spelling: our `backbone.` and wrappers' `module.` and `_orig_mod.` (of torch.compile), in any
    order, go."""
    return _WRAPPED.sub("", key).removeprefix("model.").removeprefix("backbone.")


def _sources(
    module: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, str]]:
    """Key of the module -> plain key that it is filled from; and what depends on another number of classes ->
    shapes."""
    roles, heads, shared = roles_of(module), _heads(module), _shared_keys(module)
    num_classes = {name: task.num_classes for name, task in _classifiers(module)}
    of_tasks = {match[1] for key in given if (match := _GIVEN_HEAD.match(key))}
    tasks = {task for task, _ in heads.values()}
    renamed = dict(zip(tasks, of_tasks, strict=True)) if len(tasks) == len(of_tasks) == 1 else {}
    sources: dict[str, str] = {}
    redrawn: dict[str, str] = {}
    for key in (key for key in own if roles[key].kind != BALANCE):
        task, part = heads.get(key, ("", ""))
        names = [_plain(key), f"tasks.{renamed.get(task, task)}.{part}", part, shared.get(key)]
        found = next((name for name in names if name in given), None)
        if found is None:
            continue
        if _of_other_classes(own[key], given[found], num_classes.get(task)):
            redrawn[key] = _shapes(own[key], given[found])
        elif found != part or len(tasks) == 1 or given[found].shape == own[key].shape:
            sources[key] = found
    return sources, redrawn


def _of_other_classes(own: Tensor, given: Tensor, num_classes: int | None) -> bool:
    """Whether the number of classes is all that differs."""
    if num_classes is None or own.ndim != given.ndim:
        return False
    return [size for size, other in zip(own.shape, given.shape, strict=True) if size != other] == [
        num_classes
    ]


def _release_to_timm(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The release keeps qkv and metric layers inside a fused layer that repeats them."""
    renamed, fused = {}, set()
    for key, value in given.items():
        match = _RELEASE_LAYER.match(key)
        if match is None:
            renamed[key] = value
            continue
        block, layer, kind = match.groups()
        renamed[f"{block}attn.qkv.{kind}" if layer == "qkv_layer" else f"{block}metric.{kind}"] = value
        fused.add(f"{block}attn.qkv.{kind}")
    for key in fused:
        inner = key.replace("attn.qkv.", "attn.qkv.qkv_layer.")
        renamed[key] = given[inner]
    return renamed


def _resampled(
    value: Tensor, own: Tensor, backbone: MergingViT, grid: Grid | None
) -> tuple[Tensor, tuple[Grid, Grid] | None]:
    """A position embedding [1, prefix + rows * columns, C] brought from its grid (None: not known) to the
    module's, and both grids where they differ."""
    if value.ndim != own.ndim or value.shape[-1] != own.shape[-1]:
        return value, None
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix
    grid = grid or _likely_grid(value.shape[1] - prefix, backbone.grid)
    if grid is None or grid == backbone.grid or grid[0] * grid[1] + prefix != value.shape[1]:
        return value, None
    new = resample_abs_pos_embed(
        value, new_size=list(backbone.grid), old_size=list(grid), num_prefix_tokens=prefix
    )
    return new, (grid, backbone.grid)


def _likely_grid(positions: int, own: Grid) -> Grid | None:
    """A square, else the module's own; None where the positions are of neither. Raises CheckpointError where
    they could be of both."""
    side = math.isqrt(max(positions, 0))
    is_square, is_own = side > 0 and side**2 == positions, positions == own[0] * own[1]
    if is_square and is_own and own != (side, side):
        raise CheckpointError(
            f"'pos_embed' has {positions} positions, which could be a grid of {side}x{side} or of "
            f"{own[0]}x{own[1]}, and "
            "the file does not say; give the folder of a run or a file of `dtem export`, which do, or "
            "call load_weights "
            "with grid=(rows, columns)"
        )
    return (side, side) if is_square else own if is_own else None


def _checked(key: str, own: Tensor, value: Tensor) -> Tensor:
    if own.shape != value.shape:
        where = (
            " (of another grid than a square one, or with other prefix tokens)"
            if key.endswith("pos_embed")
            else ""
        )
        raise CheckpointError(
            f"'{key}' is {_shapes(own, value)}{where}: another architecture; give backbone.name and "
            "backbone.options "
            "of the checkpoint's model"
        )
    return value


def _shapes(own: Tensor, value: Tensor) -> str:
    return f"{tuple(value.shape)} in the checkpoint and {tuple(own.shape)} in the model"
