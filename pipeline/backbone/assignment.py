"""The assignment of rows to columns with the largest sum: the one door to scipy."""

import torch
from torch import Tensor

from pipeline.extras import extra, require


def check_assignment() -> None:
    """Raises ConfigError where scipy is not installed."""
    require("mixing", "scipy", "leave `horizontal` out")


def largest_assignment(gains: Tensor) -> Tensor:
    """[B] int64: the column of each row, each column once, with the largest sum of gains [B, B].

    The host computes it by scipy, and so waits for the device. Numbers that are not finite count as 0.
    """
    with extra("mixing"):
        from scipy.optimize import linear_sum_assignment
    known = gains.detach().double().nan_to_num(0.0, 0.0, 0.0)
    _, columns = linear_sum_assignment(known.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(gains.device, torch.int64)
