"""Writing of safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import StorageError
from pipeline.files import replacing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Writes the tensors, and notes as the file's metadata, see `replacing`. Tensors may share memory.
    Raises OSError, StorageError."""
    apart = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        # the mode of the umask, which safetensors ignores
        mode = part.stat().st_mode
        try:
            save_file(apart, part, metadata={"format": "pt", **notes})
        except SafetensorError as err:
            raise StorageError(f"{path} cannot be written: {err}") from err
        part.chmod(mode)
