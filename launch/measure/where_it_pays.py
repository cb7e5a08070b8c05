"""`--reduction auto` of a command that scores: what is measured once is then the reduction of all ranks."""

from collections.abc import Sequence

from launch.saved.reductions import measured_reduction
from pipeline.backbone.auto_reduction import Auto
from pipeline.engine.model_on_device import ModelOnDevice
from pipeline.interfaces import Batch
from pipeline.model import MultiTaskModel
from pipeline.train.collective import agreed


def set_measured_reductions(
    evaluator: ModelOnDevice[MultiTaskModel], firsts: Sequence[Batch], asked: Auto
) -> None:
    """Sets the reduction of the task of each batch to r of each block: of what is asked for those merges that
    pay on rank 0's device, which is then the same on every rank. firsts: a first batch of each task. Called
    by every rank, once the reduction asked for is known to fit.
    """
    model = evaluator.module

    def measured() -> dict[str, list[int]]:
        sizes = {batch.task: model.tasks[batch.task].input_size(batch) for batch in firsts}
        with evaluator.autocast():
            return {task: measured_reduction(model, task, size, asked) for task, size in sizes.items()}

    for task, schedule in agreed(evaluator, measured).items():
        model.set_reduction(task, schedule)
