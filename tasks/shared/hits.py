"""Hits of a classifier: samples whose class is predicted first, or among the first five."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.interfaces import Scores, Tallies


def count_hits(logits: Tensor, labels: Tensor) -> Tallies:
    """Tallies of top-1 hits, top-5 hits and the summed loss. logits [B, K], labels int64 [B]."""
    hits = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
    return {
        "top1": hits[:, 0].sum(),
        "top5": hits.sum(),
        "loss": F.cross_entropy(logits, labels, reduction="sum"),
    }


def hit_shares(tallies: Tallies) -> Scores:
    """top1 and top5 in [0, 1], and the mean loss, from tallies of `count_hits` and `samples`."""
    samples = int(tallies["samples"])
    return {name: float(tallies[name]) / samples for name in ("top1", "top5", "loss")}
