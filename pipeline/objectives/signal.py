"""What a model says of images, on which a merged one is to agree with it. B images, K classes, C channels,
N patches."""

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbone.hugging_face import read_head
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.interfaces import LogProbs
from pipeline.merging.unmerge import unmerge_state
from pipeline.objectives.merge_cost import drawn_log_likelihood, drawn_projection
from pipeline.token_state import BackboneOutput

LOGITS, POOLED, PATCHES = SIGNALS = ("logits", "pooled", "patches")


class HasHead(Protocol):
    """timm's way from features to pooled features and logits."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...


class Signal:
    """One of SIGNALS: the logits [B, K] of the model's classes, its pooled features [B, C], or the features
    [B, N, C] of its patches after the last norm. All are float32 or wider."""

    def __init__(self, kind: str):
        self.kind = kind

    @property
    def metric_units(self) -> dict[str, str]:
        """Metric -> unit, as tasks have them."""
        if self.kind == LOGITS:
            return {"agreement": "%", "divergence": ""}
        return {"cosine": "", "error": ""}

    def reads_prefix_alone(self, model: MergingModel) -> bool:
        """Whether the signal surely reads no patches behind the last block: that of a model of timm that
        pools by its class token."""
        return self.kind != PATCHES and getattr(model, "global_pool", "") == "token"

    def encode(self, model: MergingModel, images: Tensor, **options: Any) -> BackboneOutput:
        """The states from which the signal is read. Patches are unmerged as the model does for dense heads.
        options: those of `MergingModel.encode`."""
        unmerge = model.merging.unmerge if self.kind == PATCHES else None
        return model.encode(images, unmerge=unmerge, **options)

    def read(self, model: MergingModel, output: BackboneOutput) -> Tensor:
        """The signal of `encode`'s output."""
        features = unmerge_state(output.final)
        if self.kind == PATCHES:
            found = features[:, output.final.num_prefix :]
        elif not hasattr(model, "forward_head"):
            found = read_head(model, features, pooled=self.kind == POOLED)
        else:
            head: HasHead = cast(HasHead, model)
            found = head.forward_head(features, pre_logits=self.kind == POOLED)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def likelihood(self, values: Tensor) -> Tensor:
        """That of outcomes drawn from the signal, a scalar with gradient; see `merge_cost`."""
        if self.kind == LOGITS:
            return drawn_log_likelihood(LogProbs(F.log_softmax(values, dim=-1)))
        return drawn_projection(values)

    def compare(self, merged: Tensor, whole: Tensor) -> dict[str, Tensor]:
        """Metric -> [B] float64: how a merged model's signal agrees with the unmerged one's.

        agreement: whether the same class comes first. divergence: that of the merged prediction from the
        unmerged, in nats. cosine: mean of that of each feature vector. error: squared distance, as a share
        of the unmerged signal's square.
        """
        merged, whole = merged.double(), whole.double()
        if self.kind == LOGITS:
            own, other = F.log_softmax(merged, dim=-1), F.log_softmax(whole, dim=-1)
            divergence = (other.exp() * (other - own)).sum(dim=-1)
            return {"agreement": (own.argmax(-1) == other.argmax(-1)).double(), "divergence": divergence}
        cosine = F.cosine_similarity(merged, whole, dim=-1).reshape(len(whole), -1).mean(dim=1)
        error = (merged - whole).flatten(1).square().sum(1) / whole.flatten(1).square().sum(1)
        return {"cosine": cosine, "error": error}
