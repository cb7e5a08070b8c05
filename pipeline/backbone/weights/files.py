"""Reading of state dicts from files and folders. Nothing in them can run code."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline import run_folder
from pipeline.backbone.build import model_facts
from pipeline.backbone.weights.contents import Contents, Prefer, chosen
from pipeline.backbone.weights.folders import FILES, files_in, stated_in
from pipeline.backbone.weights.npz import read_npz
from pipeline.backbone.weights.pickled import read_pickled
from pipeline.backbone.weights.sources import named_source
from pipeline.backbone.weights.stated import Stated
from pipeline.config.build import build_dataclass
from pipeline.config.schema import BackboneConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.token_state import Grid

log = logging.getLogger(__name__)


class Weights(dict[str, Tensor]):
    """A state dict, the grid of its position embedding, what its model's config states, and where a training
    script's file has it; None where no file says it."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        grid: Grid | None = None,
        stated: Stated | None = None,
        contents: Contents | None = None,
    ):
        super().__init__(tensors)
        self.grid = grid
        self.stated = stated
        self.contents = contents


def read_state_dict(path: str | Path, prefer: Prefer = "ema") -> dict[str, Tensor]:
    """Tensors of a .safetensors or .npz file, of one that `torch.save` wrote, or of a folder. Nothing in them
    can run code.

    The folder of a run is read as its best checkpoint, else its last; that of a checkpoint as its weights,
    with averaged ones in their place; that of `dtem export`, of timm's `local-dir:` or of transformers'
    `save_pretrained` as the files in it. In files of training scripts the state dict is found (`contents`),
    and said. prefer: `ema`, averaged weights where there are any, as timm does; or `model`, those that were
    trained. `NAME:...` is read by the source of that name in SOURCES. Raises CheckpointError.
    """
    if (named := named_source(str(path))) is not None:
        source, where = named
        return source.state_dict(where)
    path = Path(path)
    if path.is_dir():
        return _of_folder(run_folder.best(run_folder.checkpoints_of(path)) or path, prefer)
    tensors = _of_file(path, prefer)
    if path.name in FILES:
        tensors.stated = stated_in(path.parent)
    return tensors


def _of_folder(folder: Path, prefer: Prefer) -> Weights:
    parts, average = [_of_file(file, prefer) for file in files_in(folder)], folder / "ema.safetensors"
    averaged = [_of_file(average)] if prefer == "ema" and average.is_file() else []
    tensors = {key: value for part in [*parts, *averaged] for key, value in part.items()}
    return Weights(tensors, _grid_of_run(folder) or parts[0].grid, stated_in(folder))


def _of_file(path: Path, prefer: Prefer = "ema") -> Weights:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    if path.suffix == ".npz":
        return Weights(read_npz(path))
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = chosen(read_pickled(path), prefer, str(path))
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as err:
        raise CheckpointError(f"{path} cannot be read: {str(err) or 'it is empty or cut short'}") from err
    if content.place:
        log.info("%s: %s", path, content)
    return Weights(content.tensors, contents=content)


def _read_safetensors(path: Path) -> Weights:
    """The tensors, and the grid that `dtem export` writes beside them."""
    with safe_open(path, framework="pt") as file:
        sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", (file.metadata() or {}).get("grid", ""))
        return Weights(
            {key: file.get_tensor(key) for key in file.keys()},
            (int(sides[1]), int(sides[2])) if sides else None,
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
