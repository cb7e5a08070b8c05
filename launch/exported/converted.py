"""`dtem convert`: the weights of somebody's checkpoint as a file of tensors alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from launch.exported.tensors import write_tensors
from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.contents import Prefer
from pipeline.backbone.weights.files import Weights, read_state_dict
from pipeline.backbone.weights.keys import plain_key
from pipeline.backbone.weights.plain_models import fill_model
from pipeline.errors import CheckpointError, ConfigError, counted, first_few

ENDINGS = (".safetensors", ".tar", ".pth", ".pt", ".ckpt", ".bin", ".npz")


def convert(
    source: str, out: Path | None, *, prefer: Prefer, prefix: str | None = None, model: str | None = None
) -> Iterator[str]:
    """Writes the weights of `source`, and yields what was found and done, by line.

    source: what `read_state_dict` takes. out: None: the source's name in the current folder. prefix: only
    tensors whose names begin so, without it. model: timm's name of the model; the file then has timm's keys,
    and loads with `strict=True`. Raises ConfigError, and CheckpointError as `read_state_dict` and
    `fill_model` do.
    """
    out = _out(source) if out is None else out
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out} does not end in .safetensors, which is what is written")
    if out.exists():
        raise ConfigError(f"{out} is there already; give another --out, or remove it")
    given = read_state_dict(source, prefer)
    found = given if isinstance(given, Weights) else Weights(given)
    yield f"{source}: {_said(found)}"
    tensors, notes = _within(found, prefix), _notes(found)
    if model is None:
        plain = {plain_key(key): value for key, value in tensors.items()}
        tensors = plain if len(plain) == len(tensors) else tensors
    else:
        vit = create_vit(model, num_classes=None)
        yield f"{model}: {fill_model(vit, Weights(tensors, found.grid, found.stated))}"
        tensors = dict(vit.state_dict())
        rows, columns = vit.patch_embed.grid_size
        notes = {"timm": model, "grid": f"{rows}x{columns}"}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(out, tensors, notes)
    yield f"wrote {out}: {counted(len(tensors), 'tensor')}"


def _out(source: str) -> Path:
    """model_best.pth.tar -> model_best.safetensors, in the current folder."""
    name = Path(source.rpartition(":")[2]).resolve().name
    while (ending := Path(name).suffix) in ENDINGS:
        name = name.removesuffix(ending)
    return Path(f"{name}.safetensors")


def _said(found: Weights) -> str:
    return str(found.contents) if found.contents else f"took {counted(len(found), 'tensor')}"


def _notes(found: Weights) -> dict[str, str]:
    return {"grid": f"{found.grid[0]}x{found.grid[1]}"} if found.grid else {}


def _within(tensors: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it; all for None."""
    if prefix is None:
        return dict(tensors)
    within = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not within or "" in within:
        begins = sorted({f"{key.partition('.')[0]}." for key in tensors})
        raise CheckpointError(
            f"no tensor's name goes on behind '{prefix}'; names begin with {first_few(begins)}"
        )
    return within
