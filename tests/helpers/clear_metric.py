"""Metrics whose similarities lie far apart, so that no rounding chooses another pair."""

import torch
from torch import Tensor

from pipeline.merging.matching import Split


def clear_metric(batch: int, num_tokens: int, prefix: int, seed: int = 0) -> Tensor:
    """[B, M, F], numbers that bfloat16 holds. Destinations are at right angles; each source leans to one of
    them, by an angle of its own, and each row has a length of its own."""
    rng = torch.Generator().manual_seed(seed)
    split = Split.by_parity(num_tokens, prefix)
    num_sources, num_destinations = split.counts
    metric = torch.zeros(batch, num_tokens, num_destinations + 1)
    destinations = metric[:, split.destinations]
    destinations[..., :-1] = torch.eye(num_destinations)
    for image in range(batch):
        sources = torch.zeros(num_sources, num_destinations + 1)
        target = torch.randint(num_destinations, (num_sources,), generator=rng)
        sources[torch.arange(num_sources), target] = 64
        sources[:, -1] = 4.0 * torch.randperm(num_sources, generator=rng)
        metric[image, split.sources] = sources
    metric[:, split.destinations] = destinations
    return metric * 2.0 ** torch.randint(-3, 4, (batch, num_tokens, 1), generator=rng)
