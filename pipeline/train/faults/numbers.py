"""Faults of numbers."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipeline.train.faults.fault import FAULTS, AtStep, Victim


@FAULTS.register("nan")
class Nan(AtStep):
    """Makes all pixels of the step's first micro-batch NaN."""

    def __init__(self, *, step: int, rank: int | None = None):
        super().__init__(step, rank)

    def strike(self, run: Victim) -> None:
        def spoil(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            handle.remove()
            batch, *rest = given
            return replace(batch, images=torch.full_like(batch.images, torch.nan)), *rest

        handle = run.engine.module.register_forward_pre_hook(spoil)
