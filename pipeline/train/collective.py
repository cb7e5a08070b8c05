"""What ranks have to agree on, said with one sum each. All of it is called by every rank, in the same order."""

import torch
from torch import Tensor

from pipeline.interfaces import Engine


def from_rank0(engine: Engine, text: str) -> str:
    """Rank 0's text, on every rank. Bytes go over the wire, never objects."""
    if engine.world_size == 1:
        return text
    content = torch.tensor(list(text.encode()) if engine.rank == 0 else [], dtype=torch.int64, device=engine.device)
    size = engine.all_reduce(torch.tensor([len(content)], device=engine.device))
    wire = torch.zeros(int(size), dtype=torch.int64, device=engine.device)
    wire[: len(content)] = content
    return bytes(engine.all_reduce(wire).tolist()).decode()


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
    """The model's floating-point buffers (running statistics of norms), which each rank fills from its own samples, become their mean.

    A running mean is linear in what it has seen, so how often this is done changes nothing but rounding. The sum is float64, in which a
    float32 value that is the same on all ranks comes back as it was.
    """
    buffers = [buffer for buffer in engine.module.buffers() if buffer.is_floating_point()]
    if engine.world_size == 1 or not buffers:
        return
    total = engine.all_reduce(torch.cat([buffer.double().flatten() for buffer in buffers]))
    for buffer, mean in zip(buffers, (total / engine.world_size).split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
