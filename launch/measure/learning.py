"""Learned schedules of a run: the loss of which gradients reach the rates, and the schedules."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from launch.measure.solving import FoundSchedules, predicted, unmerged_predictions
from pipeline.backbone.learned_schedule import STEPS, Learned, Loss, check_ranks, learned_schedule
from pipeline.backbone.macs import counted_vit
from pipeline.backbone.vit import MergingViT
from pipeline.interfaces import Batch, LogProbs
from pipeline.model import MultiTaskModel
from pipeline.objectives.distill import divergence


def loss_of(model: MultiTaskModel, known: Sequence[tuple[Batch, LogProbs]]) -> Loss:
    """Maps r of each block to the mean divergence (nats) of the model's predictions, under a relaxed merge,
    from those of its unmerged pass: of one batch after the other, again and again. The model is in evaluation
    mode. known: see `unmerged_predictions`."""
    endless = cycle(known)

    def loss(schedule: Sequence[int]) -> Tensor:
        batch, teacher = next(endless)
        with torch.compiler.set_stance("force_eager"):
            merged = predicted(model, batch, list(schedule), relaxed=True)
            return divergence(merged, teacher)

    return loss


def _known(
    model: MultiTaskModel, batches: Sequence[Batch], device: torch.device
) -> list[tuple[Batch, LogProbs]]:
    """Tensors that a pass with gradients may keep, also where none are made around it."""
    with torch.inference_mode(False), torch.no_grad():
        return unmerged_predictions(model, batches, device)


def steps_with_bar(label: str) -> Iterable[int]:
    """The steps of learning, with a progress bar where there is a terminal."""
    return tqdm(range(STEPS), desc=f"learn {label}", leave=False, disable=None)


class LearnedSchedules(FoundSchedules):
    """Schedules that are learned. Raises ConfigError also for a policy whose rates cannot be."""

    def __init__(self, model: MultiTaskModel, batches: Sequence[Batch], label: str, device: torch.device):
        """model: of the policy, on the device. label: on the progress bar."""
        super().__init__(model, batches)
        self._label = label
        self._model, self._known = model, cache(lambda: _known(model, batches, device))
        self._learned = cache(self._learn)

    def found(self, share: float) -> list[int]:
        return self._learned(share).schedule

    def options(self, share: float) -> Mapping[str, Any]:
        return self._learned(share).options

    def _learn(self, share: float) -> Learned:
        backbone = self._model.backbone
        assert isinstance(backbone, MergingViT)  # others are refused before they are planned
        check_ranks(backbone.policy)  # before the unmerged passes
        counted = counted_vit(backbone, self._grid)
        steps = steps_with_bar(f"{self._label} at {share:g}")
        return learned_schedule(backbone, counted, share, loss_of(self._model, self._known()), steps)
