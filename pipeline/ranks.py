"""What is computed over all connected processes of a run, and over the only one where none are connected."""

from torch import Tensor, distributed


def world_size() -> int:
    """How many processes are connected."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """This rank's sum and how many it is of, both scalars -> a part whose mean over ranks is the mean over
    all that ranks have. So a rank's own gradient, averaged over ranks, is that of the whole."""
    count = count.float()
    if (ranks := world_size()) > 1:
        distributed.all_reduce(count)
    return total * ranks / count.clamp(min=1)
