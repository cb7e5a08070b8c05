"""Weights into a backbone or a whole model, whatever style their keys are in."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from pipeline.backbone.metric import shared_name
from pipeline.backbone.vit import MergingViT
from pipeline.errors import CheckpointError

DIALECTS: list[Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor] | None]] = []
"""Each puts the state dict of another project into our keys for a module, or gives None for one that is not that project's."""
SOURCES: dict[str, Callable[[str], dict[str, Tensor]]] = {}
"""Name -> what reads the path `name:...`. Both tables are filled by the package `tasks`, as TASKS is."""
_RELEASE_LAYER = re.compile(r"^(.*blocks\.\d+\.)attn\.qkv\.(qkv_layer|metric_layer)\.(weight|bias)$")
_HEAD = re.compile(r"^tasks\.([^.]+)\.(.*)$")


@dataclass(frozen=True)
class LoadReport:
    """taken: parameters of the module that got a value. missing: those that kept theirs. left: given keys that nothing wanted."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "none"

        return f"took {len(self.taken)} tensors; kept own values: {some(self.missing)}; left unused: {some(self.left)}"


def load_weights(module: nn.Module, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Copies what fits into a MergingViT or MultiTaskModel, in place. Keys may be timm's, ours, those of the authors' DTEM release, or
    another project's in DIALECTS.

    Position embeddings of another grid are resampled. A timm classifier finds the head with its names: of the only task, or of all tasks
    whose head has its shapes. A head of another model finds the task of its own name; where both models have one task, that one. What
    weighs the losses belongs to a run and stays as it is.
    Raises CheckpointError where nothing fits or a tensor has another shape, naming the first; the module is then as it was.
    """
    own = dict(module.state_dict(keep_vars=True))
    state_dict = next((read for dialect in DIALECTS if (read := dialect(state_dict, module)) is not None), state_dict)
    given = _release_to_timm({_plain(key): value for key, value in state_dict.items()})
    sources = _sources(own, given)
    fitting = {key: given[source] for key, source in sources.items()}
    if not fitting:
        raise CheckpointError(f"no key of the checkpoint fits this model: it has {next(iter(given), 'none')}, the model {next(iter(own))}")
    backbone = backbone_of(module)
    ready = {key: _checked(key, own[key], _resampled(key, own[key], value, backbone)) for key, value in fitting.items()}
    with torch.no_grad():
        for key, value in ready.items():
            own[key].copy_(value)
    left = tuple(key for key in given if key not in set(sources.values()))
    return LoadReport(tuple(fitting), tuple(key for key in own if key not in fitting), left)


def backbone_of(module: nn.Module) -> MergingViT:
    """Of a MultiTaskModel, or the module itself."""
    backbone = module if isinstance(module, MergingViT) else module.get_submodule("backbone")
    assert isinstance(backbone, MergingViT)
    return backbone


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth/.pt/.bin file (tensors only: nothing in it can run code).

    A run's folder stands for its best checkpoint, or its last; a checkpoint's folder for its weights, averaged ones first.
    The usual wrappers (`model`, `state_dict`, `model_ema`) are opened. `NAME:...` goes to the reader of that name in SOURCES.
    Raises CheckpointError.
    """
    source, _, where = str(path).partition(":")
    if source in SOURCES:
        return SOURCES[source](where)
    path = Path(path)
    if path.is_dir():
        folder = _checkpoint_of_run(path)
        average = folder / "ema.safetensors"
        weights = read_state_dict(folder / "model.safetensors")
        return weights | (read_state_dict(average) if average.is_file() else {})
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as err:
        raise CheckpointError(f"{path} cannot be read: {err}") from err
    except Exception as err:  # the unpickler's own error class lives in pickle, which this project does not import
        raise CheckpointError(f"{path} holds more than tensors, so it is not read; save its state_dict as .safetensors ({err})") from err
    for wrapper in ("state_dict", "model", "model_ema"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} is not a state dict of tensors")
    return content


def _checkpoint_of_run(folder: Path) -> Path:
    """Where the folder of a run points to; a folder without pointers is taken for a checkpoint's own."""
    root = folder / "checkpoints"
    names = [(root / pointer).read_text()[:64].strip() for pointer in ("best", "latest") if (root / pointer).is_file()]
    return next((root / name for name in names if re.fullmatch(r"step_\d+", name)), folder)


def _plain(key: str) -> str:
    """timm's spelling: our `backbone.` and wrappers' `module.` go."""
    return key.removeprefix("module.").removeprefix("model.").removeprefix("backbone.")


def _sources(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """Key of the module -> plain key that it is filled from."""
    heads = {key: match.groups() for key in own if (match := _HEAD.match(key))}
    of_tasks = {match[1] for key in given if (match := _HEAD.match(key))}
    tasks = {task for task, _ in heads.values()}
    renamed = dict(zip(tasks, of_tasks, strict=True)) if len(tasks) == len(of_tasks) == 1 else {}
    sources: dict[str, str] = {}
    for key in (key for key in own if not key.startswith("balancing.")):
        task, part = heads.get(key, ("", ""))
        names = [_plain(key), f"tasks.{renamed.get(task, task)}.{part}", part, shared_name(key)]
        found = next((name for name in names if name in given), None)
        if found is not None and (found != part or len(tasks) == 1 or given[found].shape == own[key].shape):
            sources[key] = found
    return sources


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


def _resampled(key: str, own: Tensor, value: Tensor, backbone: MergingViT) -> Tensor:
    """A position embedding brought to the module's grid, where it comes from a square one; anything else as it is."""
    if not key.endswith("pos_embed") or own.shape == value.shape:
        return value
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix
    positions = value.shape[1] - prefix
    if positions <= 0 or math.isqrt(positions) ** 2 != positions:
        return value
    return resample_abs_pos_embed(value, new_size=list(backbone.grid), num_prefix_tokens=prefix)


def _checked(key: str, own: Tensor, value: Tensor) -> Tensor:
    if own.shape != value.shape:
        shapes = f"{tuple(value.shape)} in the checkpoint and {tuple(own.shape)} in the model"
        raise CheckpointError(f"'{key}' is {shapes}: another architecture")
    return value
