"""Exchange of many tensors in few collectives: from rank 0 to all, and from pieces on all ranks to rank 0.

An exchange takes BUCKET bytes on each rank at a time. W ranks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.ranks import Ranks

BUCKET = 1 << 26


@dataclass(frozen=True)
class Piece:
    """What a rank holds of a tensor that is divided: `tensor` [n] has its elements from `start` on, counted
    in the flattened whole. n may be 0."""

    start: int
    tensor: Tensor

    def load(self, whole: Tensor) -> None:
        """Copies this piece of the whole tensor, of which nothing else is read."""
        self.tensor.copy_(whole.flatten().narrow(0, self.start, self.tensor.numel()))


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which stay as they are while training goes on. A device is waited for once."""
    copies = {
        name: tensor.detach().to("cpu", non_blocking=True, copy=True) for name, tensor in tensors.items()
    }
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies


@torch.no_grad()
def fill(ranks: Ranks, targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies `values` into the targets of the same names, on every rank. Rank 0 alone reads them. A
    collective."""
    for names in buckets({name: (target.numel(), target.dtype) for name, target in targets.items()}):
        if ranks.world_size == 1:
            for name in names:
                targets[name].copy_(values[name])
            continue
        sizes = [targets[name].numel() for name in names]
        dtype = targets[names[0]].dtype
        flat = (
            torch.cat([values[name].flatten().to(ranks.device, dtype) for name in names])
            if ranks.rank == 0
            else torch.empty(sum(sizes), device=ranks.device, dtype=dtype)
        )
        for name, part in zip(names, ranks.broadcast(flat).split(sizes), strict=True):
            targets[name].copy_(part.view(targets[name].shape))


@torch.no_grad()
def collect(
    ranks: Ranks, pieces: Mapping[str, Piece], shapes: Mapping[str, torch.Size]
) -> Callable[[], dict[str, Tensor]]:
    """Copies the pieces of all ranks to the CPU of rank 0. A collective. Returns what puts them together to
    whole tensors there, for another thread; on other ranks it returns nothing.

    pieces: this rank's, of all names in the same order on every rank, of one dtype. The ranks' pieces of a
    tensor cover it; together they are about as large on one rank as on another.
    """
    if not pieces:
        return dict
    own = torch.cat([piece.tensor.to(ranks.device) for piece in pieces.values()])
    places = torch.tensor([(piece.start, piece.tensor.numel()) for piece in pieces.values()])
    table = ranks.gather(places.to(ranks.device)).cpu()
    rows = _rows(ranks, own, int(table[..., 1].sum(dim=1).max()))
    if ranks.rank != 0:
        return dict
    return partial(_wholes, rows, table, {name: shapes[name] for name in pieces})


def _wholes(rows: Tensor, table: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The whole tensors. rows [W, longest]: the pieces of each rank, one behind the other. table [W, names,
    2]: where each begins in its tensor, and its size."""
    starts, sizes = table.unbind(-1)
    padding = rows.shape[1] - sizes.sum(dim=1, keepdim=True)
    parts = [
        row.split(of_rank)
        for row, of_rank in zip(rows, torch.cat([sizes, padding], dim=1).tolist(), strict=True)
    ]
    order = starts.argsort(dim=0).T.tolist()
    return {
        name: torch.cat([parts[rank][number] for rank in order[number]]).view(shape)
        for number, (name, shape) in enumerate(shapes.items())
    }


def _rows(ranks: Ranks, own: Tensor, longest: int) -> Tensor:
    """[W, longest] on the CPU of rank 0: the tensors [n] of all ranks, padded. Elsewhere [0, longest]."""
    padded = torch.nn.functional.pad(own, (0, longest - own.numel()))
    rows = torch.empty(ranks.world_size if ranks.rank == 0 else 0, longest, dtype=own.dtype)
    width = max(1, BUCKET // own.element_size() // ranks.world_size)
    for start in range(0, longest, width):
        block = ranks.gather(padded[start : start + width])
        if ranks.rank == 0:
            rows[:, start : start + width] = block.cpu()
    return rows


def buckets(sizes: Mapping[str, tuple[int, torch.dtype]]) -> Iterator[list[str]]:
    """Yields the names in their order, as long as they are of one dtype and of BUCKET bytes; a larger tensor
    is alone. sizes: elements and dtype by name."""
    names: list[str] = []
    num_bytes, last = 0, None
    for name, (size, dtype) in sizes.items():
        if names and (dtype != last or num_bytes + size * dtype.itemsize > BUCKET):
            yield names
            names, num_bytes = [], 0
        names.append(name)
        num_bytes, last = num_bytes + size * dtype.itemsize, dtype
    if names:
        yield names
