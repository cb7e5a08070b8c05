"""Whether all ranks are of one run. Each reads config and manifests itself, maybe from another disk."""

from collections.abc import Mapping

import torch

from pipeline.config.load import digest
from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError, SampleError
from pipeline.ranks import Ranks


def check_same_run(ranks: Ranks, config: RunConfig) -> None:
    """Every rank calls it. Raises ConfigError on all ranks where one has another config than rank 0."""
    everybodys = ranks.hosts.gather(torch.tensor(int(digest(config)[:15], 16)))
    if other := (everybodys != everybodys[0]).nonzero().flatten().tolist():
        raise ConfigError(
            f"rank {other[0]} has another config than rank 0; two launches may have met at one place: give "
            "them different MASTER_PORTs, or see that all hosts read the same files"
        )


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
