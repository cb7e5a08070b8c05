"""Files of tensors in the safetensors format, hashed as they are written."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Bytes that are hashed and written at a time."""
NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""The format's names of types."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes a new file of tensors on the CPU, and syncs it to the disk. Returns its `sha256` and `bytes`.
    Raises OSError.

    safetensors' own writer gives the same bytes, but no hash of them: a second reading would cost as much as
    the writing.
    """
    digest, num_bytes = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for part in _parts(tensors):
            digest.update(part)
            file.write(part)
            num_bytes += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": num_bytes}


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of the file: length of the header, header, tensors, the widest types first."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    # the tensors begin where their widest type may
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        data = tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data
        yield from (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
