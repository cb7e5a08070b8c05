"""An evaluation that also keeps what is predicted of each sample. B batch, K classes, H x W pixels of a
mask."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from launch.measure.prediction_files import PredictionFiles
from pipeline.data.targets import (
    CaptionTargets,
    ClassificationTargets,
    ClipTargets,
    MaskTargets,
    MultiLabelTargets,
)
from pipeline.engine.model_on_device import ModelOnDevice
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Scores, Tallies, Task
from pipeline.merging.schedule import AnyReduction
from pipeline.model import MultiTaskModel
from pipeline.train.evaluate import SizedBatches, TaskScores, evaluate
from tasks.masks.metrics import confusion
from tasks.multi_label import MultiLabelTask

MOST_CLASSES = 2048
"""Most classes of a confusion matrix; with more, there is only the accuracy of each class."""
RECORDED = "recorded/"
"""What the names of this module's own tallies begin with."""
KINDS = (ClassificationTargets, ClipTargets, MultiLabelTargets, CaptionTargets, MaskTargets)


class Sink(Protocol):
    """Where the predictions of one task go, in the order in which they come."""

    def add_line(self, batch: int, facts: Mapping[str, Any]) -> None:
        """batch: its number among those of this process."""
        ...

    def add_mask(self, key: str, labels: Tensor) -> None:
        """labels: uint8 [H, W]."""
        ...


class Recorder(nn.Module):
    """The model, whose predictions also go to sinks, if there are any. One forward pass serves all.
    confusion: task -> its matrix [K, K] (rows are labels, columns predictions), once its scores are computed.

    Classification also has the score `Acc/i` of each class i.
    """

    def __init__(
        self, model: MultiTaskModel, sinks: Mapping[str, Sink], classes: Mapping[str, Sequence[str]]
    ):
        super().__init__()
        self.model = model
        self.confusion: dict[str, Tensor] = {}
        self._sinks, self._classes = dict(sinks), dict(classes)
        self._batches: dict[str, int] = {}

    def evaluate(self, batch: Batch, *, reduction: AnyReduction | None = None) -> Tallies:
        task, encode = self.model.tasks[batch.task], self.model.encoder(batch.task, reduction)
        number = self._batches[batch.task] = self._batches.get(batch.task, -1) + 1
        sink = self._sinks.get(batch.task)
        if issubclass(task.reads, ClassificationTargets) and (sink is not None or _gives_logits(task)):
            logits = task.infer(encode, batch)
            if sink is not None:
                self._add_classes(sink, batch, logits, number)
            return task.tally(logits, batch) | _of_classes(logits, batch.targets.labels)
        if sink is None:
            return task.evaluate(encode, batch)
        if task.reads is CaptionTargets:
            tallies = task.evaluate(encode, batch)
            for row in tallies["captions"].values:
                sink.add_line(number, {"key": row.key, "caption": row.generated})
            return tallies
        found = task.infer(encode, batch)
        if isinstance(task, MultiLabelTask):
            self._add_several(sink, task, batch, found, number)
            return task.tally(found, batch)
        for key, labels in zip(batch.keys, found, strict=True):
            sink.add_mask(key, labels.to(torch.uint8))
            sink.add_line(number, {"key": key})
        return task.tally(found, batch)

    def _add_classes(self, sink: Sink, batch: Batch, logits: Tensor, number: int) -> None:
        names = self._classes[batch.task]
        shares, predicted = logits.double().softmax(-1).max(-1)
        values = (batch.targets.labels.tolist(), predicted.tolist(), shares.tolist())
        for key, label, found, share in zip(batch.keys, *values, strict=True):
            facts = {"key": key, "label": label, "prediction": found, "probability": share}
            named = {"label_name": label, "prediction_name": found}
            facts |= {name: names[own] for name, own in named.items() if own < len(names)}
            sink.add_line(number, facts)

    def _add_several(
        self, sink: Sink, task: MultiLabelTask, batch: Batch, logits: Tensor, number: int
    ) -> None:
        names = self._classes[batch.task]
        values = (batch.targets.labels > 0.5, task.predicted(logits), logits.double().sigmoid())
        for key, present, found, shares in zip(batch.keys, *values, strict=True):
            facts: dict[str, Any] = {"key": key}
            for word, own in {"label": present, "prediction": found}.items():
                numbers = own.nonzero()[:, 0].tolist()
                facts[f"{word}s"] = numbers
                facts |= {f"{word}_names": [names[i] for i in numbers]} if names else {}
            sink.add_line(number, facts | {"probabilities": shares.tolist()})

    def scores(self, task: str, tallies: Tallies, *, thorough: bool = False) -> Scores:
        own = {name: tally for name, tally in tallies.items() if not name.startswith(RECORDED)}
        scores = self.model.scores(task, own, thorough=thorough)
        if RECORDED + "confusion" in tallies:
            self.confusion[task] = tallies[RECORDED + "confusion"]
        elif self.model.tasks[task].reads is MaskTargets and "confusion" in tallies:
            self.confusion[task] = tallies["confusion"]
        if RECORDED + "of_class" in tallies:
            labelled, hits = tallies[RECORDED + "of_class"].tolist()
            pairs = enumerate(zip(labelled, hits, strict=True))
            scores |= {f"Acc/{i}": right / of if of else None for i, (of, right) in pairs}
        return scores


def _gives_logits(task: Task) -> bool:
    """Whether `infer` alone is what is scored; a task that evaluates in its own way may give anything."""
    return type(task).evaluate is Task.evaluate


def _of_classes(logits: Tensor, labels: Tensor) -> Tallies:
    """Samples and hits of each class, int64 [2, K], and the confusion matrix [K, K] where it is not too
    large."""
    count, predicted = logits.shape[-1], logits.argmax(-1)
    of_class = torch.zeros(2, count, dtype=torch.int64, device=logits.device)
    of_class[0].index_add_(0, labels, torch.ones_like(labels))
    of_class[1].index_add_(0, labels, (predicted == labels).long())
    found: Tallies = {RECORDED + "of_class": of_class}
    if count <= MOST_CLASSES:
        found[RECORDED + "confusion"] = confusion(predicted, labels, count)
    return found


def recorded_evaluation(
    evaluator: ModelOnDevice[MultiTaskModel],
    loaders: Mapping[str, SizedBatches],
    path: str | Path | None,
    classes: Mapping[str, Sequence[str]],
    *,
    reduction: AnyReduction | None = None,
    details: bool = False,
) -> tuple[TaskScores, dict[str, list[list[int]]]]:
    """The thorough scores of `evaluate`, and on rank 0 the confusion matrix of each task with classes: labels
    as rows, of samples or of pixels.

    path: where predictions are written, see `PredictionFiles`; None: nowhere. details: without a path the
    matrices and the scores of each class are left out unless this asks for them. classes: task -> names of
    its classes. Called by every rank.
    """
    model = evaluator.module
    if path is None and not details:
        return evaluate(evaluator, loaders, reduction=reduction, thorough=True), {}
    files = None
    if path is not None:
        for task in loaders:
            check_form(model, task)
        files = PredictionFiles(path, {task: model.tasks[task].reads for task in loaders}, evaluator)
    recorder = Recorder(model, files.sinks if files else {}, classes)
    try:
        recording = ModelOnDevice(recorder, evaluator.precision)
        scores = evaluate(recording, loaders, reduction=reduction, thorough=True)
        if files is not None:
            files.finish({task: int(own["samples"] or 0) for task, own in scores.items()})
    finally:
        if files is not None:
            files.discard()
    return scores, {task: matrix.tolist() for task, matrix in recorder.confusion.items()}


def check_form(model: MultiTaskModel, task: str) -> None:
    """Raises ConfigError for a task whose predictions have no form."""
    if model.tasks[task].reads not in KINDS:
        raise ConfigError(f"the predictions of task '{task}' have no form to be written in")
