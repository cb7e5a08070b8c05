"""Procedures of a step that the project does not have: what a user writes."""

import torch
from torch import Tensor

from pipeline.config.schema import TrainConfig
from pipeline.train.steps import STEPS
from pipeline.train.steps.plain import Plain
from pipeline.train.steps.procedure import StepWork


@STEPS.register("sharpness_aware")
class SharpnessAware(Plain):
    """The gradient is taken where the loss is highest nearby: `radius` away, up the gradient (Foret et al.,
    ICLR 2021, without weight decay)."""

    def __init__(self, train: TrainConfig, *, radius: float = 0.05):
        super().__init__(train)
        self._radius = radius

    def __call__(self, work: StepWork) -> Tensor:
        micro_batches, engine = list(work.micro_batches), work.engine
        weights = [weight for weight in engine.module.parameters() if weight.requires_grad]
        loss = torch.stack([work.forward(micro).loss * micro.share for micro in micro_batches]).sum()
        grads = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        grads = [engine.all_reduce(grad.contiguous()) for grad in grads]
        norm, before = (
            torch.stack([grad.norm() for grad in grads]).norm(),
            [w.detach().clone() for w in weights],
        )
        with torch.no_grad():
            for weight, grad in zip(weights, grads, strict=True):
                weight.add_(grad * (self._radius / norm))
        for micro in micro_batches:
            work.backward(micro, work.forward(micro), last=micro.last)
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
        return work.step()


@STEPS.register("each_alone")
class EachAlone(Plain):
    """A step of the optimizer behind each micro-batch."""

    def __call__(self, work: StepWork) -> Tensor:
        norms = []
        for micro in list(work.micro_batches):
            work.backward(micro, work.forward(micro), last=True)
            norms.append(work.step())
        return torch.stack(norms).sum()
