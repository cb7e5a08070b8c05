"""Classification of images that have any number of classes. B batch, K classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbone.backbone import Backbone
from pipeline.data.targets import MultiLabelTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, LogProbs, Rows, Scores, Tallies, TaskOutput
from pipeline.model import TASKS
from tasks.classification import ClassificationTask
from tasks.shared.average_precision import count_predicted, scores_of

LOSSES = ("binary_cross_entropy", "asymmetric")
FOCUS = {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05}
"""Options of the asymmetric loss (arXiv 2009.14119), which is timm's, with timm's defaults."""


@TASKS.register("multi_label")
class MultiLabelTask(ClassificationTask):
    """The head of `classification`, of which each logit is a question of its own: has the image this class?

    loss: `binary_cross_entropy`, the mean over samples and classes; or `asymmetric`, summed over classes and
    the mean over samples. loss_options: of the latter, see FOCUS. label_smoothing: share by which labels move
    towards 0.5. threshold: probability from which a class counts as predicted. Raises ConfigError.
    """

    reads = MultiLabelTargets
    reads_pool_alone = True
    has_one_class = False
    main_metric = "mAP"
    metric_units = {"mAP": "%", "F1_micro": "%", "F1_macro": "%"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        pool: str | None = None,
        label_smoothing: float = 0.0,
        loss: str = "binary_cross_entropy",
        loss_options: Mapping[str, Any] | None = None,
        threshold: float = 0.5,
        dropout: float = 0.0,
        class_weight: Sequence[float] | None = None,
        token_mixup: Mapping[str, Any] | None = None,
    ):
        super().__init__(
            backbone,
            num_classes=num_classes,
            pool=pool,
            label_smoothing=label_smoothing,
            dropout=dropout,
            class_weight=class_weight,
            token_mixup=token_mixup,
        )
        if loss not in LOSSES:
            raise ConfigError(f"multi_label: loss is '{loss}'; give one of {', '.join(LOSSES)}")
        if not 0 < threshold < 1:
            raise ConfigError(f"multi_label: threshold is {threshold}; give a probability in (0, 1)")
        self.loss, self.threshold = loss, threshold
        self.focus = _focus(loss, dict(loss_options or {}))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothed = labels * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        if self.loss == "binary_cross_entropy":
            return F.binary_cross_entropy_with_logits(logits, smoothed, weight=self.class_weight)
        return AsymmetricLossMultiLabel(weight=self.class_weight, **self.focus)(logits, smoothed)

    def _losses_of_images(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[B]: the mean binary cross-entropy of each image over its classes."""
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)

    def log_probs(self, output: TaskOutput, batch: Batch) -> LogProbs:
        """Log-probabilities of whether each image has each class, and whether not: values [B, K, 2]."""
        logits = output.predictions
        return LogProbs(torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1))

    def predicted(self, logits: Tensor) -> Tensor:
        """bool [B, K]: the classes that each image is said to have."""
        return logits.sigmoid() >= self.threshold

    @torch.no_grad()
    def tally(self, predictions: Tensor, batch: Batch) -> Tallies:
        """Rows of the logits and labels of each sample, from which the average precision is exact however
        they are spread over ranks; counts of what is predicted, and the summed loss. predictions: the logits
        [B, K]."""
        labels = batch.targets.labels
        losses = F.binary_cross_entropy_with_logits(predictions, labels, reduction="none")
        return {
            "logits": Rows(predictions),
            "labels": Rows(labels),
            "counts": count_predicted(self.predicted(predictions), labels > 0.5),
            "loss": losses.mean(-1).sum(),
        }

    def scores(self, tallies: Tallies, *, thorough: bool = False) -> Scores:
        """The metrics of `scores_of`, and `loss`, the mean binary cross-entropy."""
        found = scores_of(tallies["logits"], tallies["labels"] > 0.5, tallies["counts"])
        return found | {"loss": float(tallies["loss"]) / int(tallies["samples"])}


def _focus(loss: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the asymmetric loss. Raises ConfigError."""
    if options and loss != "asymmetric":
        raise ConfigError(f"multi_label: loss '{loss}' has no loss_options; leave them out")
    if unknown := options.keys() - FOCUS.keys():
        raise ConfigError(f"multi_label: loss_options has no {min(unknown)!r}; it has {', '.join(FOCUS)}")
    wrong = {n: v for n, v in options.items() if type(v) not in (int, float) or not 0 <= v < 100}
    if wrong or options.get("clip", 0) >= 1:
        raise ConfigError(f"multi_label: loss_options is {options}; give numbers from 0 on, clip below 1")
    return FOCUS | options
