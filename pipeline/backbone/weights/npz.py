"""Tensors of numpy's .npz files, in which JAX projects keep their weights."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import CheckpointError

DENSEST = 20
"""Most bytes of an array for each byte of the file that holds it. Weights hardly compress; a file that says
otherwise would fill the memory."""


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of numbers by their names; floats become float32. Objects are not read, as they are pickled.
    Raises CheckpointError."""
    try:
        with zipfile.ZipFile(path) as packed:
            for member in packed.infolist():
                if member.file_size > DENSEST * (member.compress_size + 1024):
                    raise CheckpointError(f"{path}: '{member.filename}' unpacks to {member.file_size} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _tensor(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, OSError, EOFError, MemoryError, zipfile.BadZipFile, RuntimeError) as err:
        reason = str(err) or type(err).__name__
        raise CheckpointError(f"{path} cannot be read as arrays of numbers: {reason}") from err


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
