"""Hits of a classifier: how many samples have their class first, and among the first five."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.interfaces import Scores, Tallies


def count_hits(logits: Tensor, labels: Tensor) -> Tallies:
    """What `hit_shares` needs. logits [B, K], labels [B]."""
    hits = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
    return {
        "top1": hits[:, 0].sum(),
        "top5": hits.sum(),
        "loss": F.cross_entropy(logits, labels, reduction="sum"),
    }


def hit_shares(tallies: Tallies) -> Scores:
    samples = int(tallies["samples"])
    return {name: float(tallies[name]) / samples for name in ("top1", "top5", "loss")}
