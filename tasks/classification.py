"""ImageNet-style classification. B batch, C channels, K classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.attention_pool import build_attention_pool, pool_by_attention, pool_numbers
from pipeline.backbone.backbone import Backbone
from pipeline.backbone.partner import partner_of, start_partner
from pipeline.backbone.token_mixup import TokenMixing
from pipeline.data.augment.patch_mixing import mixed_labels
from pipeline.data.targets import ClassificationTargets, Mixture
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Encode, LogProbs, Scores, Sums, Tallies, Task, TaskOutput
from pipeline.model import TASKS
from pipeline.token_state import BackboneOutput, Carried, TokenState
from tasks.shared.class_weights import class_weights
from tasks.shared.classes import check_num_classes
from tasks.shared.hits import count_hits, hit_shares
from tasks.shared.pooling import check_pool, pool
from tasks.shared.token_mixup import TokenMixup

MAX_CLASSES = 1_000_000
LOSSES = ("cross_entropy", "binary_cross_entropy")
"""Binary cross-entropy takes each class for a question of its own (DeiT III). Its mean is over samples and
classes."""


@TASKS.register("classification")
class ClassificationTask(Task):
    """timm's head under timm's names: pooling, a norm where timm's model has one there, and a linear layer.

    With a distillation token in the backbone, the logits are the mean of two heads. pool: `token`, `avg`,
    `map` (by attention, in backbones that have it), or None for the backbone's own way. target_threshold:
    with binary cross-entropy, labels above it are 1 and the others 0. class_weight: a factor of the loss of
    each class; the loss stays a mean over samples, so parts of a batch add up. token_mixup: options of
    `tasks.shared.token_mixup.TokenMixup`.
    """

    reads = ClassificationTargets
    class_weight: Tensor | None
    reads_pool_alone = True
    """Counts for the class that says it, and not for its subclasses, which may read patches besides."""
    has_one_class = True
    follows_tokens = True
    main_metric = "top1"
    metric_units = {"top1": "%", "top5": "%"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        pool: str | None = None,
        label_smoothing: float = 0.0,
        loss: str = "cross_entropy",
        target_threshold: float | None = None,
        dropout: float = 0.0,
        class_weight: Sequence[float] | None = None,
        token_mixup: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        check_num_classes("classification", num_classes, MAX_CLASSES)
        if not (0 <= label_smoothing < 1 and 0 <= dropout < 1):
            raise ConfigError(
                f"classification: label_smoothing {label_smoothing} and dropout {dropout} must be in [0, 1)"
            )
        if loss not in LOSSES or (target_threshold is not None and loss != "binary_cross_entropy"):
            raise ConfigError(
                f"classification: loss is '{loss}' and target_threshold {target_threshold}; give one of "
                f"{', '.join(LOSSES)}, and a threshold with the second alone"
            )
        dim = backbone.embed_dim
        weights = class_weights("classification", class_weight, num_classes)
        self.register_buffer("class_weight", weights, persistent=False)
        self.loss, self.target_threshold = loss, target_threshold
        self.num_classes, self.num_prefix = num_classes, backbone.num_prefix
        self.pool = pool or backbone.global_pool
        self.attn_pool = build_attention_pool(backbone) if self.pool == "map" else None
        self.pools_prefix = backbone.pools_prefix
        if self.attn_pool is None:
            check_pool(self.pool, backbone.num_prefix)
        self.reads_prefix_alone = self.pool == "token" and vars(type(self)).get("reads_pool_alone", False)
        self.label_smoothing = label_smoothing
        self.fc_norm = backbone.build_fc_norm()
        self.head_drop = nn.Dropout(dropout)
        self.head = _linear_head(dim, num_classes)
        self.head_dist = _linear_head(dim, num_classes) if backbone.dist_token is not None else None
        self.token_mixup = None if token_mixup is None else TokenMixup(backbone, num_classes, token_mixup)
        self.token_mixing = None if self.token_mixup is None else self.token_mixup.mixing

    def forward(self, output: BackboneOutput, batch: Batch) -> TaskOutput:
        """The mean loss. batch.targets: ClassificationTargets, labels int64 [B] or float [B, K].
        predictions: logits [B, K], float32."""
        logits, (labels, logs) = self.logits(output), self._labels(output.final, batch)
        beside = 0.0
        if output.mix is not None:
            assert self.token_mixup is not None, "who mixes has the settings of it"
            labels, beside, logs = self.token_mixup.learned(output.mix, labels, self.num_classes)
        loss = self._loss(logits, labels) + beside
        logs = {"loss": (loss.detach() * len(logits), len(logits)), **logs}
        return TaskOutput(loss, logs, predictions=logits)

    def carried(self, batch: Batch) -> Mapping[str, Carried]:
        """How much of each token is of the image that was mixed in, where labels follow the tokens."""
        mixture = _mixture(batch)
        return {} if mixture is None else start_partner(mixture.partner, self.num_prefix)

    def mixing(self, batch: Batch) -> TokenMixing | None:
        """How tokens of a batch of training are mixed, by its labels."""
        mixup = self.token_mixup
        return None if mixup is None else mixup.for_batch(batch.targets.labels, self._losses_of_images)

    def _losses_of_images(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[B]: the cross-entropy of each image, by which TokenMixup tells easy ones."""
        return F.cross_entropy(logits, labels, reduction="none")

    def _labels(self, state: TokenState, batch: Batch) -> tuple[Tensor, Sums]:
        """The labels of the loss, and what is reported of them: where they follow the tokens, how far they
        are from those by area, as a share of the image."""
        mixture = _mixture(batch)
        if mixture is None:
            return batch.targets.labels, {}
        partner = self.partner_read(state)
        shift = (partner - mixture.partner.mean(dim=(1, 2))).abs().sum()
        labels = mixed_labels(mixture.labels, partner, self.num_classes)
        return labels, {"label_shift": (shift, len(partner))}

    @torch.no_grad()
    def partner_read(self, state: TokenState) -> Tensor:
        """[B] in [0, 1]: how much of what the head reads is of the image that was mixed in. A subclass that
        reads other tokens overrides it."""
        partner = partner_of(state)
        if self.attn_pool is not None:
            read = pool_numbers(self.attn_pool, state, partner, with_prefix=self.pools_prefix)
        else:
            read = pool(state.with_tokens(partner[..., None]), self.pool).squeeze(-1)
        if self.head_dist is not None:
            read = (read + partner[:, 1]) / 2
        return read.clamp(0, 1)

    def predictions(self, output: BackboneOutput, batch: Batch) -> Tensor:
        return self.logits(output)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss == "cross_entropy":
            # torch's own mean divides by the sum of the weights
            losses = F.cross_entropy(
                logits,
                labels,
                weight=self.class_weight,
                reduction="mean" if self.class_weight is None else "none",
                label_smoothing=self.label_smoothing,
            )
            return losses.mean()
        wanted = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[1]).float()
        wanted = wanted * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        if self.target_threshold is not None:
            wanted = (wanted > self.target_threshold).float()
        return F.binary_cross_entropy_with_logits(logits, wanted, weight=self.class_weight)

    def logits(self, output: BackboneOutput) -> Tensor:
        """[B, K] float32"""
        logits = self.head(self.head_drop(self.image_features(output)))
        if self.head_dist is not None:
            logits = (logits + self.head_dist(output.final.tokens[:, 1])) / 2
        return logits.float()

    def image_features(self, output: BackboneOutput) -> Tensor:
        """[B, C]: what is pooled, after the norm behind the pooling. The head of a distillation token reads
        others."""
        return self.fc_norm(self._pooled(output.final))

    def _pooled(self, state: TokenState) -> Tensor:
        """[B, C]"""
        if self.attn_pool is None:
            return pool(state, self.pool)
        return pool_by_attention(self.attn_pool, state, with_prefix=self.pools_prefix)

    def log_probs(self, output: TaskOutput, batch: Batch) -> LogProbs:
        """Log-probabilities of each image's class: values [B, K]."""
        return LogProbs(F.log_softmax(output.predictions, dim=-1))

    @torch.no_grad()
    def label_probability(self, output: TaskOutput, batch: Batch) -> Tensor:
        """[B] float32, by the softmax of the logits."""
        share, labels = output.predictions.softmax(dim=-1), batch.targets.labels
        if labels.is_floating_point():
            return (share * (labels > 0)).sum(dim=-1)
        return share.gather(1, labels[:, None]).squeeze(1)

    def infer(self, encode: Encode, batch: Batch) -> Tensor:
        """The logits [B, K]."""
        return self.logits(encode(batch.images))

    @torch.no_grad()
    def tally(self, predictions: Tensor, batch: Batch) -> Tallies:
        """The number of samples whose class is predicted first (top1) and among the first five (top5), and
        the sum of their cross-entropies, whatever the loss is. predictions: the logits [B, K]."""
        return count_hits(predictions, batch.targets.labels)

    def scores(self, tallies: Tallies, *, thorough: bool = False) -> Scores:
        """top1 and top5 in [0, 1], and `loss`, the mean cross-entropy."""
        return hit_shares(tallies)


def _mixture(batch: Batch) -> Mixture | None:
    """What the images were mixed of, where labels follow the tokens. Targets of a user may not say it."""
    return getattr(batch.targets, "mixture", None)


def _linear_head(dim: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
