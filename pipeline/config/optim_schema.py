"""The optimizer of a run. Standard library only. Import it from `schema.py`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.config.reduction_schema import require


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning rates, which depend on the step alone."""

    type: str = "adamw"
    """`adamw`, `sgd`, `lion`, `lamb` or `muon`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the optimizer, such as momentum."""
    lr: float = 1e-4
    """Learning rate of backbone and heads."""
    metric_lr: float | None = None
    """Learning rate of the metric embeddings; None: the same as lr."""
    min_lr: float = 1e-6
    schedule: Literal["cosine", "linear", "poly", "step", "constant"] = "cosine"
    """From lr behind the warm-up to min_lr at the end; `step` and `constant` do not go to min_lr."""
    power: float = 0.9
    """`poly`: the rate falls with the rest of the steps to this power."""
    milestones: list[float] = field(default_factory=list)
    """`step`: shares of the run, between 0 and 1, at which the rate is multiplied by `gamma`."""
    gamma: float = 0.1
    warmup_steps: int = 0
    """Steps in which the rates rise; or give warmup_epochs, or warmup_share."""
    warmup_epochs: float = 0.0
    warmup_share: float = 0.0
    """The warm-up as a share of the run's steps. A resolved run has it in warmup_steps."""
    weight_decay: float = 1e-4
    """Weight decay; biases, norms and other one-dimensional parameters have none."""
    betas: tuple[float, float] | None = None
    """None: those of the optimizer, for `adamw` (0.9, 0.999)."""
    layer_decay: float = 1.0
    clip_grad: float | None = 5.0
    ema_decay: float = 0.0
    """Decay per step of the averaged weights; 0 keeps no average."""
    ema_warmup: bool = False
    """Lower decays in the first steps, as timm's: 1 - (step + 1)^(-2/3)."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optim.lr is {self.lr}; give a number above 0")
        require(
            self.metric_lr is None or self.metric_lr > 0,
            f"optim.metric_lr is {self.metric_lr}; give a number above 0",
        )
        require(
            0 <= self.min_lr <= self.lr,
            f"optim.min_lr is {self.min_lr}; give a number in [0, optim.lr = {self.lr}]",
        )
        require(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}; give 0 or more")
        require(
            all(0 <= beta < 1 for beta in self.betas or ()),
            f"optim.betas is {self.betas}; give two numbers in [0, 1)",
        )
        self._check_schedule()
        require(
            self.clip_grad is None or self.clip_grad > 0,
            f"optim.clip_grad is {self.clip_grad}; give a number above 0, or None",
        )
        require(
            0 < self.layer_decay <= 1, f"optim.layer_decay is {self.layer_decay}; give a number in (0, 1]"
        )
        require(0 <= self.ema_decay < 1, f"optim.ema_decay is {self.ema_decay}; give a number in [0, 1)")

    def _check_schedule(self) -> None:
        names = ("warmup_steps", "warmup_epochs", "warmup_share")
        for name in names:
            require(getattr(self, name) >= 0, f"optim.{name} is {getattr(self, name)}; give 0 or more")
        require(self.warmup_share < 1, f"optim.warmup_share is {self.warmup_share}; give a share below 1")
        given = [f"optim.{name}" for name in names if getattr(self, name)]
        require(len(given) <= 1, f"{' and '.join(given)} are given, which say the same; give one of them")
        require(self.power > 0, f"optim.power is {self.power}; give a number above 0")
        require(0 < self.gamma <= 1, f"optim.gamma is {self.gamma}; give a number in (0, 1]")
        require(
            all(0 < share < 1 for share in self.milestones)
            and self.milestones == sorted(set(self.milestones)),
            f"optim.milestones is {self.milestones}; give rising shares of the run between 0 and 1",
        )
        require(
            bool(self.milestones) == (self.schedule == "step"),
            f"optim.schedule is '{self.schedule}' and optim.milestones {self.milestones}: they go together; "
            "give optim.schedule='step' with optim.milestones=[0.5, 0.75], or none of both",
        )
