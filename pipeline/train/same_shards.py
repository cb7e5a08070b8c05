"""Whether all ranks read the same shards. Each rank reads the manifests itself, maybe from another disk."""

from collections.abc import Mapping

import torch

from pipeline.errors import SampleError
from pipeline.ranks import Ranks


def check_same_shards(ranks: Ranks, fingerprints: Mapping[str, int]) -> None:
    """Every rank calls it, with the fingerprint of each manifest, by what reads it. Raises SampleError on all
    ranks where one has another manifest than rank 0."""
    if not fingerprints:
        return
    everybodys = ranks.gather(torch.tensor(list(fingerprints.values()), device=ranks.device))
    other = (everybodys != everybodys[0]).nonzero().tolist()
    if other:
        rank, place = other[0]
        raise SampleError(
            f"{list(fingerprints)[place]}: the manifest of rank {rank} is not that of rank 0; see that all "
            "hosts read the same folder, and that nobody changes it while a run starts"
        )
