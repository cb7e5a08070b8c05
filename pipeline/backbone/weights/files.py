"""Reading of state dicts from files and folders. Nothing in them can run code."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline import run_folder
from pipeline.backbone.build import model_facts
from pipeline.backbone.weights.folders import FILES, files_in, stated_in
from pipeline.backbone.weights.npz import read_npz
from pipeline.backbone.weights.sources import named_source
from pipeline.backbone.weights.stated import Stated
from pipeline.config.build import build_dataclass
from pipeline.config.schema import BackboneConfig
from pipeline.errors import CheckpointError, ConfigError

Grid = tuple[int, int]
"""Grid of patches: (rows, columns)."""

WRAPPERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model")
"""Names under which files keep a state dict. Where a file has several, the first is taken."""


class Weights(dict[str, Tensor]):
    """A state dict, the grid of its position embedding, and what its model's config states; None where no
    file says it."""

    def __init__(self, tensors: Mapping[str, Tensor], grid: Grid | None, stated: Stated | None = None):
        super().__init__(tensors)
        self.grid = grid
        self.stated = stated


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth, .pt, .bin or .npz file, or of a folder. Nothing in them can run code.

    The folder of a run is read as its best checkpoint, else its last; that of a checkpoint as its weights,
    with averaged ones in their place; that of `dtem export`, of timm's `local-dir:` or of transformers'
    `save_pretrained` as the files in it. The usual wrappers are opened, averaged weights first, as timm does
    (WRAPPERS). `NAME:...` is read by the source of that name in SOURCES. Raises CheckpointError.
    """
    if (named := named_source(str(path))) is not None:
        source, where = named
        return source.state_dict(where)
    path = Path(path)
    if path.is_dir():
        return _of_folder(run_folder.best(run_folder.checkpoints_of(path)) or path)
    tensors = _of_file(path)
    stated = stated_in(path.parent) if path.name in FILES else None
    return Weights(tensors, getattr(tensors, "grid", None), stated)


def _of_folder(folder: Path) -> Weights:
    parts, average = [_of_file(file) for file in files_in(folder)], folder / "ema.safetensors"
    averaged = [_of_file(average)] if average.is_file() else []
    tensors = {key: value for part in [*parts, *averaged] for key, value in part.items()}
    return Weights(tensors, _grid_of_run(folder) or getattr(parts[0], "grid", None), stated_in(folder))


def _of_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    if path.suffix == ".npz":
        return read_npz(path)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as err:
        raise CheckpointError(f"{path} cannot be read: {str(err) or 'it is empty or cut short'}") from err
    # the unpickler's own error class is in pickle, which this project does not import
    except Exception as err:
        raise CheckpointError(_more_than_tensors(path, str(err))) from err
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} is not a state dict of tensors")
    return content


def _read_safetensors(path: Path) -> Weights:
    """The tensors, and the grid that `dtem export` writes beside them."""
    with safe_open(path, framework="pt") as file:
        sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", (file.metadata() or {}).get("grid", ""))
        return Weights(
            {key: file.get_tensor(key) for key in file.keys()},
            (int(sides[1]), int(sides[2])) if sides else None,
        )


def _more_than_tensors(path: Path, reason: str) -> str:
    """Message for a file with other objects, such as the arguments in files of timm's train script."""
    found = re.search(r"GLOBAL ([\w.]+)", reason)
    inside = f" ({found[1]})" if found else ""
    keep = f"torch.save(torch.load('{path}', weights_only=False)['state_dict'], 'weights.pth')"
    return (
        f"{path} holds Python objects besides tensors{inside}, and to read them could run code; if you "
        f'trust whoever made it, keep its tensors alone: python -c "import torch; {keep}"'
    )


def _grid_of_run(folder: Path) -> Grid | None:
    """Grid of a checkpoint's position embedding, by the config in its manifest; None without one."""
    if not (manifest := folder / "manifest.json").is_file():
        return None
    try:
        section = json.loads(manifest.read_text(encoding="utf-8"))["config"]["backbone"]
        return model_facts(build_dataclass(BackboneConfig, section)).grid
    except (OSError, ValueError, LookupError, TypeError, RecursionError, ConfigError):
        return None
