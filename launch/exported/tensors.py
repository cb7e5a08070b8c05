"""Writing of safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pipeline.files import replacing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Writes the tensors, and notes as the file's metadata, see `replacing`. Tensors may share memory."""
    apart = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        # the mode of the umask, which safetensors ignores
        mode = part.stat().st_mode
        save_file(apart, part, metadata={"format": "pt", **notes})
        part.chmod(mode)
