"""The folder of an adapter: tensors, what is known of them, and a model card. Nothing in it can run code.

    adapter.safetensors  adapter_config.json  README.md

A stranger may have written it, so sizes are looked at before anything is read.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.backbone.adapters.adapter import Adapter, shapes_of
from pipeline.backbone.adapters.card import card_text
from pipeline.backbone.adapters.config import AdapterConfig, from_json
from pipeline.errors import CheckpointError, ConfigError
from pipeline.files import sha256_of, write_bytes, write_text
from pipeline.run_folder import refuse_run

TENSORS, CONFIG, CARD = "adapter.safetensors", "adapter_config.json", "README.md"
MOST_BYTES = {CONFIG: 1 << 20, TENSORS: 1 << 28}
"""Largest sizes: a ViT of 40 blocks of 4096 channels has 84 MB of embeddings in float32."""


def write_folder(adapter: Adapter, folder: Path) -> None:
    """Writes the three files, in place of those that are there. Raises ConfigError, OSError.

    Each is there as a whole or not at all, and a link is replaced, not followed. The configuration comes
    last and knows the tensors: a folder that was cut off is the old adapter, or none.
    """
    refuse_run(folder)
    tensors = save(dict(adapter.tensors), {"format": "pt"})
    config = replace(adapter.config, tensors_sha256=hashlib.sha256(tensors).hexdigest())
    text = _readable(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / TENSORS, tensors)
    write_text(folder / CARD, card_text(config, folder.absolute().name))
    write_text(folder / CONFIG, text)


def read_folder(folder: Path) -> Adapter:
    """The adapter in a folder. Raises ConfigError and CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no folder {folder}; give that of an adapter, or hf-hub:USER/NAME for one on the hub"
        )
    for name in (CONFIG, TENSORS):
        check_size(folder / name, _size_of(folder / name), MOST_BYTES[name])
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        config = from_json(text, str(folder / CONFIG))
        if config.tensors_sha256 not in (None, sha256_of(folder / TENSORS)):
            raise CheckpointError(f"it is not the file that {CONFIG} was written with; get both again")
        return Adapter(config, _tensors(folder / TENSORS, config))
    except (SafetensorError, OSError, ValueError) as err:
        raise CheckpointError(f"{folder} cannot be read: {err}") from err
    except CheckpointError as err:
        raise CheckpointError(f"{folder / TENSORS}: {err}") from err


def _readable(config: AdapterConfig) -> str:
    """The configuration as text. Raises ConfigError where that could not be read again."""
    try:
        text = config.to_json()
    except TypeError as err:
        raise ConfigError(f"the configuration of the adapter is no plain data: {err}") from err
    from_json(text, "the configuration of the adapter")
    return text


def check_size(place: Path | str, num_bytes: int, most: int) -> None:
    """Raises CheckpointError for a file that is too large to be that of an adapter."""
    if num_bytes > most:
        raise CheckpointError(f"{place} has {num_bytes} bytes, and that of an adapter {most} at most")


def _size_of(path: Path) -> int:
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} is no merge adapter: it has no file {path.name}; `dtem export RUN --adapter` and "
            "dtem.save_adapter write one"
        )
    return path.stat().st_size


def _tensors(path: Path, config: AdapterConfig) -> dict[str, Tensor]:
    """The tensors, which are read only where their names and shapes are those of the adapter."""
    with safe_open(path, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        widths = {shape[0] for shape in shapes.values() if shape}
        base = config.base
        if len(widths) != 1 or shapes != shapes_of(base.depth, base.width, widths.pop()):
            raise CheckpointError(
                f"it does not hold blocks.N.metric.weight and .bias of {base.depth} blocks of {base.width} "
                "channels"
            )
        # copies, as what safetensors gives is mapped, and the file may be written anew
        return {key: file.get_tensor(key).clone() for key in shapes}
