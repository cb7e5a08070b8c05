"""Folders of other libraries that hold weights: `save_pretrained` of Hugging Face transformers, and timm's
`local-dir:`. Only files of the folder itself are read."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.backbone.weights.huggingface_config import pixels_by, stated_by
from pipeline.backbone.weights.stated import Stated
from pipeline.errors import CheckpointError, first_few

FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file with the weights, the first first. Weights in several files have a list of them, named
`FILE.index.json`."""

JOIN_ZERO = "`python -m deepspeed.utils.zero_to_fp32 {} OUT --safe_serialization` makes a folder of weights"
_FILE = (".pth", ".pt", ".ckpt", ".tar", ".safetensors", ".bin", ".npz")

LARGEST = 1 << 26
"""Bytes of a JSON file; the list of a model's thousand files has a few hundred thousand."""


def files_in(folder: Path) -> list[Path]:
    """The files that hold the folder's weights. Raises CheckpointError where there are none, or the list of
    them is wrong."""
    for name in FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (listed := read_json(folder / f"{name}.index.json")) is not None:
            return _listed(folder, listed, name)
    names = sorted(path.name for path in folder.iterdir())
    inside = ", ".join(names[:5]) or "nothing"
    raise CheckpointError(
        f"{folder} has no weights: neither {' nor '.join(FILES)}, but {inside}; {_way_out(folder, names)}"
    )


def _way_out(folder: Path, names: Sequence[str]) -> str:
    """What to do with a folder whose weights lie otherwise. names: of what is in it."""
    if {"zero_to_fp32.py", "latest"} & set(names) or any(folder.glob("**/*_states.pt")):
        return f"of DeepSpeed's parts {JOIN_ZERO.format(folder)}"
    if any(folder.glob("**/*.distcp")):
        parts = next(folder.glob("**/*.distcp")).parent
        return (
            "of torch's distributed parts `python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{parts} weights.pth` makes one file"
        )
    if steps := [name for name in names if re.fullmatch(r"checkpoint-\d+", name)]:
        return f"give one of its checkpoints: {first_few([str(folder / name) for name in steps], 3)}"
    if files := [name for name in names if name.endswith(_FILE)]:
        return f"give a file: {first_few([str(folder / name) for name in files], 3)}"
    return "give the folder of a run, of `dtem export` or of save_pretrained, or a file"


def stated_in(folder: Path) -> Stated | None:
    """Heads and activation by a config.json of transformers; None without one."""
    config = read_json(folder / "config.json")
    return None if config is None else stated_by(config)


def pixels_in(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file that says how the folder's weights want their pixels, and fields of Preprocessing as it has
    them; None where no file does."""
    for name, inside in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        found = read_json(folder / name)
        processor = found if found is None or inside is None else found.get(inside)
        if isinstance(processor, dict) and "image_mean" in processor:
            try:
                return folder / name, pixels_by(processor)
            except (LookupError, TypeError, ArithmeticError, AttributeError) as err:
                raise CheckpointError(f"{folder / name} is of no image processor: {err!r}") from err
    config = read_json(folder / "config.json") or {}
    known = config.get("pretrained_cfg", config)
    if isinstance(known, dict) and "mean" in known:
        return folder / "config.json", known
    return None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file. Raises CheckpointError for another content."""
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST:
        raise CheckpointError(f"{path} has more than {LARGEST} bytes, and is none that a library writes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"{path} is no JSON: {str(err) or type(err).__name__}") from err
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object of names and values")
    return content


def _listed(folder: Path, listed: dict[str, Any], name: str) -> list[Path]:
    """Files that a list names. They stand beside it: a name that leads elsewhere is refused."""
    table = listed.get("weight_map")
    names = sorted(set(map(str, table.values()))) if isinstance(table, dict) else []
    strange = [part for part in names if Path(part).name != part or Path(part).suffix != Path(name).suffix]
    if strange or not names:
        what = f"names '{strange[0]}', which is no such file beside it" if strange else "names no files"
        raise CheckpointError(f"{folder / name}.index.json {what}; save the model again")
    return [folder / part for part in names]
