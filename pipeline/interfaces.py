"""Protocols and data that the parts of the pipeline exchange."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.coded import Coded
from pipeline.errors import ConfigError
from pipeline.parts import BALANCE, BASE, HEAD, METRIC
from pipeline.pixels import Normalisation
from pipeline.token_state import BackboneOutput, Carried

Sums = dict[str, tuple[Tensor, Tensor | float]]
"""Name -> (sum, count), which are added over steps and ranks; the value is sum / count. The sum is a detached
scalar on the device, and so is a count that only the device knows. Any other count is a number, as the host
would wait for its copy to the device."""


@dataclass(frozen=True)
class Rows:
    """Rows of an evaluation: a tensor [n, ...] on the device, or a tuple of n values that JSON can hold."""

    values: Tensor | tuple[Any, ...]


Tallies = dict[str, Any]
"""Name -> count or rows of an evaluation. A detached tensor of any shape on the device is added over batches
and ranks: whole numbers exactly, as int64, others as float64. `Rows` are joined, batch by batch and rank by
rank, so that rows of several names keep the same order."""

Scores = dict[str, float | None]
"""Metric -> value; None is n/a, for instance the IoU of a class that no sample has."""

Encode = Callable[[Tensor], BackboneOutput]
"""Maps images [B, 3, H, W], or clips [B, T, 3, H, W], to the backbone's output under the merge of inference,
with the taps and source maps that the task reads."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one task.

    images [B, 3, H, W]; of clips [B, T, 3, H, W], in evaluation perhaps [B, V, T, 3, H, W] of V views of one:
    uint8 from a stream; after `to` float32 and normalised, as models read them. targets: the task's own
    dataclass of tensors. keys [B]: names of the images' samples. normalisation: applied by `to`; None where
    it is done. views: number of images of each sample, which are neighbours and have a target each, so that
    `unflatten(0, (-1, views))` is [samples, views, ...]. coded: images that `to` decodes on the device, which
    `images` is without until then.
    """

    task: str
    images: Tensor
    targets: Any
    keys: tuple[str, ...] = ()
    normalisation: Normalisation | None = None
    views: int = 1
    coded: Coded | None = None

    @property
    def num_images(self) -> int:
        """The number of images, coded or not."""
        return len(self.images) + (len(self.coded.places) if self.coded else 0)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on the device, with normalised images. Raises SampleError for coded images that do not
        decode."""
        batch = self.decoded(device)
        moved: Batch = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)
        if moved.normalisation is None:
            return moved
        return replace(moved, images=moved.normalisation(moved.images), normalisation=None)

    def decoded(self, device: torch.device | str) -> "Batch":
        """The batch with all of its images, uint8: on the device, where some were coded. Raises SampleError
        for those that do not decode."""
        if self.coded is None:
            return self
        return replace(self, images=self.coded.among(self.images, torch.device(device)), coded=None)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with each tensor replaced by the function's result, also within dataclasses and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(function, item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        own = {item.name: map_tensors(function, getattr(value, item.name)) for item in fields(value)}
        return replace(value, **own)
    return value


@dataclass(frozen=True)
class StepSpec:
    """The loop's orders for a micro-batch: the parts that learn from it, and the merge. The same on every
    rank."""

    trains: frozenset[str] = frozenset({METRIC, BASE, HEAD, BALANCE})
    """Kinds of parts (see `pipeline.parts`) that learn in this step; others rest."""
    reduction: int | None = None
    """Tokens that each block removes; None: the task's own reduction."""
    relaxed: bool = True
    """Whether the merge is the policy's differentiable one, where it has one; else it is that of
    inference."""
    draw: float = 0.0
    """A random number in [0, 1), for objectives with a random choice."""


JOINT_STEP = StepSpec()
"""A step in which everything learns, under the relaxed merge."""


@dataclass(frozen=True)
class TaskOutput:
    """Result of a forward pass. loss: scalar with gradient. logs: sums to report. predictions: in the task's
    own form (for classification, logits [B, K]).

    unweighed: the loss, detached, before its weight among the tasks was applied; None where none was. parts:
    where that loss is a sum, its terms by name, scalars with gradient, the main one first; else empty.
    """

    loss: Tensor
    logs: Sums = field(default_factory=dict)
    predictions: Any = None
    unweighed: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def losses(self) -> Mapping[str, Tensor]:
        """The parts, of one loss itself."""
        return self.parts or {"loss": self.loss}


@dataclass(frozen=True)
class LogProbs:
    """A task's predictions for a batch as distributions over K outcomes: classes of an image, or words at a
    position.

    values [..., K] float32: log-probabilities, with gradient. counts [...] bool: whether a distribution
    counts; None where all do, and every rank has the same number.
    """

    values: Tensor
    counts: Tensor | None = None


class Task(nn.Module):
    """A head and its loss. The `logs` of its `forward` are reported. A subclass defines `reads`,
    `main_metric`, `metric_units` and the methods that raise here; the rest has defaults."""

    reads: type
    """Dataclass of the targets of its batches (see `pipeline.data.targets`)."""
    taps: tuple[int, ...] = ()
    """Blocks whose states the head reads."""
    reads_final: bool = True
    """Whether the head also reads the final state; if not, blocks after the last tap change nothing."""
    reads_prefix_alone: bool = False
    """Whether the head reads no patches of the final state. A step of training then leaves them out."""
    unmerge: str | None = None
    """The head's way to unmerge, one of `pipeline.merging.unmerge.UNMERGES`; None where it does not."""
    reads_clips: bool = False
    """Whether its images are clips [B, T, 3, H, W], which only some backbones read."""
    num_classes: int = 0
    """Number of classes of the head; 0 where it has none."""
    has_one_class: bool = False
    """Whether each image has one class: then there are `image_features` and `label_probability`."""
    follows_tokens: bool = False
    """Whether its labels can follow the tokens of mixed images (`data.augment.mix_labels`)."""
    contrasts: bool = False
    """Whether it compares images with captions: then there is `contrasted`."""
    token_mixing: Any = None
    """How tokens of its batches are mixed inside of the backbone, a `TokenMixing` of
    `pipeline.backbone.token_mixup`; None: they are not."""
    losses: tuple[str, ...] = ("loss",)
    """Names of the losses whose sum is its loss, `TaskOutput.parts`, the main one first."""
    main_metric: str
    """Name of the metric that ranks checkpoints; larger is better."""
    metric_units: Mapping[str, str]
    """Metric -> unit, for the metrics in tables and plots, main_metric first: `%` for a share in [0, 1], else
    the text to write after the number, which may be empty."""

    def forward(self, output: BackboneOutput, batch: Batch) -> TaskOutput:
        raise NotImplementedError

    def carried(self, batch: Batch) -> Mapping[str, Carried]:
        """What travels with the tokens of a batch of training, for the loss: `carried` of
        `MergingViT.forward`. Mostly nothing."""
        return {}

    def mixing(self, batch: Batch) -> Any:
        """`token_mixing` with what it needs of a batch of training: `mixing` of `MergingViT.forward`."""
        return self.token_mixing

    def contrasted(
        self, output: BackboneOutput, mixed: BackboneOutput, batch: Batch, blend: Any
    ) -> TaskOutput:
        """`forward`, where what is compared with captions is of images that were mixed with one another: by a
        `Blend` of `pipeline.objectives.contrast`."""
        raise NotImplementedError

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises ConfigError where shards have more classes than the head."""
        needed = len(classes)
        if 0 < self.num_classes < needed:
            raise ConfigError(
                f"the shards have {needed} classes, the head has {self.num_classes}; give "
                f"head.num_classes={needed}"
            )

    def predictions(self, output: BackboneOutput, batch: Batch) -> Any:
        """The predictions of `forward`, for evaluation. A task whose loss costs much, or is a collective,
        overrides it with what computes no loss."""
        return self(output, batch).predictions

    def log_probs(self, output: TaskOutput, batch: Batch) -> LogProbs:
        """Predictions of a batch, for objectives that compare them or draw from them."""
        raise NotImplementedError

    def image_features(self, output: BackboneOutput) -> Tensor:
        """[B, C]: the vector of each image by which the head tells its class."""
        raise NotImplementedError

    def label_probability(self, output: TaskOutput, batch: Batch) -> Tensor:
        """[B] float32, without gradient: the probability of each image's label; of a mixed image, of all its
        labels together."""
        raise NotImplementedError

    def input_size(self, batch: Batch) -> tuple[int, int]:
        """(height, width) in pixels of the first images that `infer` encodes: the batch's, or a window's."""
        return batch.images.shape[-2], batch.images.shape[-1]

    def infer(self, encode: Encode, batch: Batch) -> Any:
        """A user's result for the batch's images: classes, masks, captions. It may call `encode` several
        times, for instance per window or scale. Speed is measured on it."""
        raise NotImplementedError

    def predicted(self, logits: Tensor) -> Tensor:
        """bool [B, K]: the classes that each image is said to have, by its logits [B, K]; of a task that
        reads `MultiLabelTargets`."""
        raise NotImplementedError

    def infer_in_full(self, encode: Encode, batch: Batch) -> Any:
        """`infer` with the most work that a prediction can take, on which compute is measured. It differs
        from `infer` where the work depends on the predictions."""
        return self.infer(encode, batch)

    def evaluate(self, encode: Encode, batch: Batch) -> Tallies:
        """Tallies of the batch's samples, from which the metrics are computed."""
        return self.tally(self.infer(encode, batch), batch)

    def tally(self, predictions: Any, batch: Batch) -> Tallies:
        """The tallies of what `infer` gave, for a task whose `evaluate` needs no more."""
        raise NotImplementedError

    def scores(self, tallies: Tallies, *, thorough: bool = False) -> Scores:
        """The metrics of tallies that were added up, with `samples`, their number. Tensors are on the CPU.
        Called on rank 0 alone.

        thorough: also compute metrics that take long, which training leaves out.
        """
        raise NotImplementedError


class TaskData(Protocol):
    """Facts of a task's samples, for the model and the user."""

    num_samples: int
    """Number of samples in an epoch, over all ranks."""
    classes: tuple[str, ...]
    """Class names of the labels; empty where there are none."""
    gives: type
    """Dataclass of the targets of its batches."""


@dataclass
class Progress:
    """State of the training loop."""

    step: int = 0
    """Number of optimizer steps done."""
    samples: dict[str, int] = field(default_factory=dict)
    """Task -> number of samples seen over all ranks."""
    nonfinite: int = 0
    """Number of the last steps in a row that were skipped for a loss that is not finite."""
    best: float | None = None
    """Best value of the main metric so far."""
    best_step: int | None = None
    """Step of that value, whose checkpoint stays."""
    evaluated: int = 0
    """Step of the last evaluation."""
