"""What ranks have to agree on, said with one sum each. All of it is called by every rank, in the same
order."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.interfaces import Engine


def from_rank0(engine: Engine, text: str) -> str:
    """Rank 0's text, on every rank. Bytes go over the wire, never objects."""
    if engine.world_size == 1:
        return text
    return _joined_bytes(engine, text.encode() if engine.rank == 0 else b"").decode()


def joined_json(engine: Engine, values: Sequence[Any]) -> list[Any]:
    """The values of all ranks behind one another, in the order of ranks, as JSON gives them back."""
    lines = _joined_bytes(engine, json.dumps(list(values)).encode() + b"\n").splitlines()
    return [value for line in lines for value in json.loads(line)]


def _joined_bytes(engine: Engine, own: bytes) -> bytes:
    return (
        joined(engine, torch.from_numpy(np.frombuffer(own, np.uint8).copy()).to(engine.device))
        .numpy()
        .tobytes()
    )


def joined(engine: Engine, own: Tensor) -> Tensor:
    """[n, ...] on the CPU: the tensors of all ranks behind one another, in the order of ranks. They may
    differ in n."""
    if engine.world_size == 1:
        return own.cpu()
    counts = rows(engine, torch.tensor(len(own))).tolist()
    table = torch.zeros(sum(counts), *own.shape[1:], dtype=own.dtype, device=engine.device)
    start = sum(counts[: engine.rank])
    table[start : start + len(own)] = own
    return engine.all_reduce(table).cpu()


def rows(engine: Engine, row: Tensor) -> Tensor:
    """[world_size, ...] on the CPU: the tensor of each rank, equally shaped everywhere."""
    table = torch.zeros(engine.world_size, *row.shape, dtype=row.dtype, device=engine.device)
    table[engine.rank] = row
    return engine.all_reduce(table).cpu()


def maximum(engine: Engine, value: int) -> int:
    return int(rows(engine, torch.tensor(value)).max())


def anywhere(engine: Engine, flag: bool) -> bool:
    return maximum(engine, int(flag)) > 0


@torch.no_grad()
def average_buffers(engine: Engine) -> None:
    """The model's floating-point buffers (running statistics of norms), which each rank fills from its own
    samples, become their mean.

    A running mean is linear in what it has seen, so how often this is done changes nothing but rounding. The
    sum is float64, in which a float32 value that is the same on all ranks comes back as it was.
    """
    buffers = [buffer for buffer in engine.module.buffers() if buffer.is_floating_point()]
    if engine.world_size == 1 or not buffers:
        return
    total = engine.all_reduce(torch.cat([buffer.double().flatten() for buffer in buffers]))
    for buffer, mean in zip(
        buffers, (total / engine.world_size).split([buffer.numel() for buffer in buffers]), strict=True
    ):
        buffer.copy_(mean.view_as(buffer))
