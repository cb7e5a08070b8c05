"""Ranks: the processes of a run, and computations over all of them."""

from datetime import timedelta
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

    @property
    def hosts(self) -> "Ranks":
        """The same ranks, which exchange tensors on the CPU: no host waits for its device. A rank may wait
        here for long, as another may still load data, save, or compute scores."""
        ...

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, which may overwrite the tensor. With one rank, the tensor itself."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """[world_size, ...]: the tensors of all ranks, in the order of ranks."""
        ...

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The tensor of rank 0, which may overwrite this rank's."""
        ...

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest value of each element over ranks. Each rank talks to log2(world_size) others, where
        the other methods go around all of them: for small tensors that are exchanged often."""
        ...


class Processes:
    """`Ranks` that torch.distributed has connected; one rank where it has connected none. group: None is the
    group of all."""

    def __init__(self, device: torch.device, group: distributed.ProcessGroup | None = None):
        connected = distributed.is_available() and distributed.is_initialized()
        self.device, self._group = device, group
        self.rank = distributed.get_rank() if connected else 0
        self.world_size = distributed.get_world_size() if connected else 1

    @property
    def hosts(self) -> "Processes":
        return Processes(torch.device("cpu"), _hosts[0] if _hosts else None)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        if self.world_size > 1:
            distributed.all_reduce(tensor, group=self._group)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        tensors = tensor.new_empty(self.world_size, *tensor.shape)
        if self.world_size == 1:
            tensors[0] = tensor
        elif tensor.numel():
            distributed.all_gather_into_tensor(
                tensors.view(-1), tensor.contiguous().view(-1), group=self._group
            )
        return tensors

    def broadcast(self, tensor: Tensor) -> Tensor:
        if self.world_size > 1 and tensor.numel():
            distributed.broadcast(tensor, src=0, group=self._group)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        distance = 1
        while distance < self.world_size:
            # by now this is the largest of `distance` ranks, this one and those before it
            other, size = torch.empty_like(tensor), self.world_size
            sent = distributed.isend(tensor, (self.rank + distance) % size, group=self._group)
            distributed.recv(other, (self.rank - distance) % size, group=self._group)
            assert sent is not None, "every rank is in the group"
            sent.wait()
            tensor, distance = torch.maximum(tensor, other), 2 * distance
        return tensor


HOSTS = "hosts"
"""Description of the group of `Ranks.hosts`."""
_hosts: list[distributed.ProcessGroup] = []


def connect_hosts(limit: timedelta) -> None:
    """Makes the group of `Ranks.hosts`, in which a rank waits up to `limit`. A collective."""
    group = distributed.new_group(timeout=limit, backend="gloo", group_desc=HOSTS)
    assert isinstance(group, distributed.ProcessGroup), "every rank is in it"
    _hosts[:] = [group]


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """A scalar whose mean over ranks is the mean of all values on all ranks. total: the sum of this rank's
    values; count: their number; both scalars. The gradients of ranks then average to the gradient of the
    whole mean."""
    ranks = Processes(total.device)
    return total * ranks.world_size / ranks.all_reduce(count.float()).clamp(min=1)
