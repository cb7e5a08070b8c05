"""ATC, Agglomerative Token Clustering (Haurum et al., ECCV 2024, arXiv 2409.11923): the two nearest clusters
merge, r times.

The distance of two tokens is 1 - cosine of their keys. That of clusters follows from it by the linkage; each
token that enters the block counts once, whatever its size. A block's clusters are forgotten behind it.

The images of a batch take each step together, so the host waits for nothing. The price is r steps in a row,
each over the n x n distances of every image: r n^2 comparisons and 20 r short kernels. That is much where r
is large.
"""

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.groups import join, likeness, positions, real
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, TokenState

LINKAGES = ("average", "complete", "single")


@POLICIES.register("atc")
class AgglomerativeClustering(MergePolicy):
    """Merges the nearest clusters of tokens, again and again. linkage: one of LINKAGES; the paper's is best
    by `average`. Raises ConfigError."""

    needs = frozenset({"keys"})
    compares_all = True

    def __init__(self, *, linkage: str = "average"):
        if linkage not in LINKAGES:
            raise ConfigError(f"atc: linkage is '{linkage}'; give one of {', '.join(LINKAGES)}")
        self.linkage = linkage

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        distance, valid = 1 - likeness(evidence.keys, state), real(state)
        if valid is not None:
            distance = distance.masked_fill(~(valid[:, None] & valid[..., None]), torch.inf)
        return join(state, clusters(distance, r, self.linkage, positions(state), state.quota), r)


def clusters(distance: Tensor, r: int, linkage: str, own: Tensor, quota: Tensor | None = None) -> Tensor:
    """[B, n] int64: the first token of each token's cluster, after r merges, or as many as the quota [B] of
    an image. distance [B, n, n], symmetric. own [B, n]: positions."""
    image = torch.arange(own.shape[0], device=own.device)
    own_distance = torch.eye(own.shape[1], dtype=torch.bool, device=own.device)
    distance = distance.masked_fill(own_distance, torch.inf)
    count, cluster = torch.ones_like(distance[:, 0]), own
    for step in range(r):
        first, second = _nearest(distance)
        row, gone = distance[image, first], distance[image, second]
        sizes = count[image, first, None], count[image, second, None]
        joined = _linked(linkage, (row, gone), sizes)
        joined = joined.masked_fill((own == first[:, None]) | (own == second[:, None]), torch.inf)
        given, unreachable = sizes[1][:, 0], torch.full_like(gone, torch.inf)
        moves = cluster == second[:, None]
        if quota is not None:
            goes = step < quota
            joined, unreachable = joined.where(goes[:, None], row), unreachable.where(goes[:, None], gone)
            given, moves = given * goes, moves & goes[:, None]
        for index, values in ((first, joined), (second, unreachable)):
            distance[image, index] = values
            distance[image, :, index] = values
        count[image, first] += given
        cluster = first[:, None].where(moves, cluster)
    return cluster


def _nearest(distance: Tensor) -> tuple[Tensor, Tensor]:
    """[B], [B]: the two nearest clusters of each image by the distances [B, n, n], in their order."""
    place, num = distance.flatten(1).argmin(dim=1), distance.shape[1]
    pair = torch.stack([place // num, place % num])
    return pair.amin(dim=0), pair.amax(dim=0)


def _linked(linkage: str, rows: tuple[Tensor, Tensor], sizes: tuple[Tensor, Tensor]) -> Tensor:
    """[B, n]: distances of two clusters taken together, from those of each [B, n] and their sizes [B, 1]."""
    if linkage == "average":
        return (rows[0] * sizes[0] + rows[1] * sizes[1]) / (sizes[0] + sizes[1])
    return rows[0].maximum(rows[1]) if linkage == "complete" else rows[0].minimum(rows[1])
