"""Classification of clips. B batch, V views, T frames, K classes."""

import torch
from torch import Tensor

from pipeline.data.targets import ClipTargets
from pipeline.interfaces import Batch, Encode
from pipeline.model import TASKS
from tasks.classification import ClassificationTask


@TASKS.register("video_classification")
class VideoClassificationTask(ClassificationTask):
    """The head, the losses and the metrics of `classification`, for a backbone that reads clips. In
    evaluation the probabilities of several views of a video are averaged."""

    reads = ClipTargets
    reads_clips = True
    reads_pool_alone = True
    follows_tokens = False

    def infer(self, encode: Encode, batch: Batch) -> Tensor:
        """The logits [B, K]; of images [B, V, T, 3, H, W] the logarithms of the mean probabilities. The views
        are encoded one after the other."""
        if batch.images.ndim == 5:
            return super().infer(encode, batch)
        shares = [self.logits(encode(view)).softmax(-1) for view in batch.images.unbind(1)]
        return torch.stack(shares).mean(0).log()
