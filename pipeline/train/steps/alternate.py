"""Backbone and embeddings learn in turn, each under the merge that suits it."""

from pipeline.config.schema import TrainConfig
from pipeline.interfaces import StepSpec
from pipeline.parts import BALANCE, BASE, HEAD, METRIC
from pipeline.train.steps.plain import Plain
from pipeline.train.steps.procedure import STEPS


@STEPS.register("alternate")
class Alternate(Plain):
    """Every `train.alternate_period`-th step trains the embeddings under the relaxed merge. The other steps
    train everything else under the merge of inference. Each step is carried out as a plain one."""

    modes = ("end_to_end",)

    def __init__(self, train: TrainConfig):
        """No options."""
        super().__init__(train)
        self._period = train.alternate_period

    def spec(self, step: int) -> StepSpec:
        if step % self._period == self._period - 1:
            return StepSpec(frozenset({METRIC, BALANCE}))
        return StepSpec(frozenset({BASE, HEAD, BALANCE}), relaxed=False)
