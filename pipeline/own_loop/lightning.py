"""The phases of a patched model in Lightning's trainer."""

from typing import Any

from torch.optim import Optimizer

from pipeline.extras import extra
from pipeline.own_loop.phases import ALTERNATE, phase_of

with extra("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer


class PhasesOfMerging(Callback):
    """Begins the phase of each optimizer step, and ends it before the optimizer moves.

    mode, period: as `phase_of` takes them. The module's own `training_step` computes the loss. It works with
    accumulation, clipping, every precision, and DDP by `ddp_find_unused_parameters_true`.
    """

    def __init__(self, mode: str = ALTERNATE, period: int = 10):
        phase_of(0, mode, period=period)  # to fail here
        self.mode, self.period = mode, period

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        phase_of(trainer.global_step, self.mode, period=self.period).begin(pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        phase_of(trainer.global_step, self.mode, period=self.period).end(pl_module)
