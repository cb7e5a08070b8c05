"""The processes of a run, and what is computed over all of them."""

from typing import Protocol

import torch
from torch import Tensor, distributed


class Ranks(Protocol):
    """This process among those of the run. The methods are collectives: every rank calls them, in the same
    order, with a tensor on its device of the same dtype and shape."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, which may be in the place of the tensor; the tensor itself where there is one
        rank."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """[world_size, ...]: each rank's tensor, in the order of ranks."""
        ...

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, which may be in the place of this one's."""
        ...


class Processes:
    """`Ranks` that torch.distributed has connected; one rank where it has connected none."""

    def __init__(self, device: torch.device):
        connected = distributed.is_available() and distributed.is_initialized()
        self.device = device
        self.rank = distributed.get_rank() if connected else 0
        self.world_size = distributed.get_world_size() if connected else 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        everybodys = tensor.new_empty(self.world_size, *tensor.shape)
        if self.world_size == 1:
            everybodys[0] = tensor
        elif tensor.numel():
            distributed.all_gather_into_tensor(everybodys.view(-1), tensor.contiguous().view(-1))
        return everybodys

    def broadcast(self, tensor: Tensor) -> Tensor:
        if self.world_size > 1 and tensor.numel():
            distributed.broadcast(tensor, src=0)
        return tensor


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """This rank's sum and how many it is of, both scalars -> a part whose mean over ranks is the mean over
    all that ranks have. So a rank's own gradient, averaged over ranks, is that of the whole."""
    ranks = Processes(total.device)
    return total * ranks.world_size / ranks.all_reduce(count.float()).clamp(min=1)
