"""Semantic segmentation: MMSegmentation's heads on unmerged tokens.

B batch, C channels, K classes, h w cells of a head's logits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.backbone import Backbone
from pipeline.data.members.masks import IGNORED
from pipeline.data.targets import MaskTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Encode, LogProbs, Scores, Sums, Tallies, Task, TaskOutput
from pipeline.merging.unmerge import UNMERGES
from pipeline.merging.unmerge import unmerge as unmerged
from pipeline.model import TASKS
from pipeline.token_state import BackboneOutput, TokenState
from tasks.masks.inference import Inference
from tasks.masks.metrics import scores_of
from tasks.masks.windows import classify, count_confusion, input_size
from tasks.shared.classes import check_num_classes
from tasks.shared.options import from_options


@TASKS.register("segmentation")
class SegmentationTask(Task):
    """Unmerges each tap by its own source map. The grids go to a neck (if any) and a decode head, both
    mmseg's.

    decode_head, auxiliary_head (one or a list), neck: mmseg's config dicts; num_classes and in_channels are
    filled in where absent. out_indices: blocks whose tokens the heads read, by default the last. final_norm:
    whether the last block is read after the backbone's norm. unmerge: see `pipeline.merging.unmerge`; None is
    `residual`. merged_decoder: whether Segmenter's decoder reads the merged tokens, and its logits are
    unmerged. inference: options of `tasks.masks.inference.Inference`. Raises ConfigError.
    """

    reads = MaskTargets
    main_metric = "mIoU"
    metric_units = {"mIoU": "%", "aAcc": "%", "mAcc": "%"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        decode_head: Mapping[str, object],
        auxiliary_head: Mapping[str, object] | Sequence[Mapping[str, object]] | None = None,
        neck: Mapping[str, Any] | None = None,
        out_indices: Sequence[int] | None = None,
        final_norm: bool = True,
        unmerge: str | None = None,
        merged_decoder: bool = False,
        inference: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        check_num_classes("segmentation", num_classes, IGNORED, " (label 255 is ignored)")
        # imported late, as it takes seconds
        from tasks.mmseg_bridge import heads

        indices = _block_indices(out_indices, backbone.depth)
        self.reads_final = final_norm and indices[-1] == backbone.depth - 1
        self.taps = indices[:-1] if self.reads_final else indices
        self.unmerge = unmerge or ("copy" if merged_decoder else "residual")
        if self.unmerge not in UNMERGES:
            raise ConfigError(f"segmentation: unmerge is {unmerge!r}; give one of {', '.join(UNMERGES)}")
        self.num_classes, self.patch_size = num_classes, backbone.patch_size
        self.merged_decoder = merged_decoder
        self.inference = from_options(Inference, "inference", inference)
        channels = [backbone.widths[block] for block in indices]
        self.neck = None
        if neck is not None:
            self.neck, channels = heads.build_neck(neck, channels)
        self.decode_head = heads.build_decode_head(decode_head, in_channels=channels, num_classes=num_classes)
        specs = [auxiliary_head] if isinstance(auxiliary_head, Mapping) else auxiliary_head or []
        build = heads.build_decode_head
        self.auxiliary_head = nn.ModuleList(
            build(spec, in_channels=channels, num_classes=num_classes, field=f"auxiliary_head[{i}]")
            for i, spec in enumerate(specs)
        )
        if len(self.auxiliary_head):
            self.losses = ("decode", *(f"aux_{i}" for i in range(len(self.auxiliary_head))))
        if merged_decoder:
            self._check_merged_decoder(decode_head["type"])

    def _check_merged_decoder(self, kind: object) -> None:
        from tasks.mmseg_bridge.merged_segmenter import HEAD

        if kind != HEAD:
            raise ConfigError(f"merged_decoder feeds {HEAD}, not {kind}, with merged tokens; leave it out")
        if self.neck is not None or len(self.auxiliary_head) or self.unmerge == "residual":
            raise ConfigError(
                "merged_decoder reads the merged tokens: leave out neck and auxiliary_head, and "
                "unmerge='residual'"
            )

    def forward(self, output: BackboneOutput, batch: Batch) -> TaskOutput:
        """The sum of mmseg's losses. batch.targets: MaskTargets. predictions: the head's logits [B, K, h, w],
        float32."""
        from tasks.mmseg_bridge.heads import head_losses as losses

        mask = batch.targets.mask
        features = () if self.merged_decoder else self.features(output)
        logits = self._decode(output, features)
        values = {f"decode.{name}": value for name, value in losses(self.decode_head, logits, mask).items()}
        for i, head in enumerate(self.auxiliary_head):
            values |= {
                f"aux_{i}.{name}": value for name, value in losses(head, head(features).float(), mask).items()
            }
        losses = {name: value for name, value in values.items() if "loss" in name}
        loss = torch.stack(list(losses.values())).sum()
        count = len(mask)
        logs: Sums = {
            name: (value.detach() * count, count) for name, value in ({"loss": loss} | values).items()
        }
        return TaskOutput(loss, logs, predictions=logits, parts=self._parts(losses))

    def _parts(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum of each head's losses, where there is more than one head. losses: by `HEAD.NAME`."""
        if not len(self.auxiliary_head):
            return {}
        return {
            head: torch.stack([loss for name, loss in losses.items() if name.startswith(f"{head}.")]).sum()
            for head in self.losses
        }

    def predictions(self, output: BackboneOutput, batch: Batch) -> Tensor:
        return self.logits(output)

    def logits(self, output: BackboneOutput) -> Tensor:
        """[B, K, h, w] float32"""
        return self._decode(output, () if self.merged_decoder else self.features(output))

    def features(self, output: BackboneOutput) -> tuple[Tensor, ...]:
        """The input of the heads: the unmerged grid of each tap [B, C, h, w], or the neck's features."""
        grids = tuple(unmerged(state) for state in self._states(output))
        return grids if self.neck is None else self.neck(grids)

    def _states(self, output: BackboneOutput) -> tuple[TokenState, ...]:
        return (*output.taps, output.final) if self.reads_final else output.taps

    def _decode(self, output: BackboneOutput, features: tuple[Tensor, ...]) -> Tensor:
        if not self.merged_decoder:
            return self.decode_head(features).float()
        from tasks.mmseg_bridge.merged_segmenter import decode_merged

        return decode_merged(self.decode_head, self._states(output)[self.decode_head.in_index]).float()

    def log_probs(self, output: TaskOutput, batch: Batch) -> LogProbs:
        """Log-probabilities of each cell's class: values [B, h, w, K]."""
        return LogProbs(F.log_softmax(output.predictions, dim=1).movedim(1, -1))

    def input_size(self, batch: Batch) -> tuple[int, int]:
        return input_size(super().input_size(batch), self.inference, self.patch_size)

    def infer(self, encode: Encode, batch: Batch) -> list[Tensor]:
        """For each image, the class of every pixel of its mask [H, W]."""
        return list(classify(encode, self.logits, batch, self.inference, self.patch_size))

    def tally(self, predictions: Sequence[Tensor], batch: Batch) -> Tallies:
        """`confusion` [K, K] int64: number of pixels by label and prediction. predictions: the class of every
        pixel of each image's mask, [H, W]."""
        return {"confusion": count_confusion(predictions, batch.targets.mask, self.num_classes)}

    def scores(self, tallies: Tallies, *, thorough: bool = False) -> Scores:
        """See `tasks.masks.metrics.scores_of`."""
        return scores_of(tallies["confusion"])


def _block_indices(given: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The blocks, ascending, in [0, depth); None is the last, and a negative number counts from the end.
    Raises ConfigError."""
    indices = (depth - 1,) if given is None else tuple(i + depth if i < 0 else i for i in given)
    if not indices or list(indices) != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < depth:
        raise ConfigError(
            f"out_indices is {given}; give ascending numbers of the {depth} blocks, 0 to {depth - 1}"
        )
    return indices
