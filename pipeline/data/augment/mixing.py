"""Mixup and cutmix of a training batch: timm's, by draws that belong to a step."""

from dataclasses import replace

from timm.data.mixup import Mixup

from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.patch_mixing import PatchCutmix
from pipeline.data.targets import MultiLabelTargets
from pipeline.interfaces import Batch
from pipeline.rng import preserved_generators, seed_generators


class BatchMixer:
    """Mixes each image, and its labels, with the one at the mirrored place of the batch, which has an even
    number of samples. Identity where neither is on. reads: the dataclass of the targets. patch: (height,
    width) in pixels of a patch, where rectangles end between patches.

    With the modes `pair` and `elem` timm copies the shares to the device, for which the host waits.
    """

    def __init__(
        self, augment: AugmentConfig, num_classes: int, reads: type, patch: tuple[int, int] = (1, 1)
    ):
        # the task's loss smooths labels, which is the same before and after they are mixed
        self._mix = (
            Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                cutmix_minmax=augment.cutmix_minmax,
                prob=augment.mix_prob,
                switch_prob=augment.mix_switch,
                mode=augment.mix_mode,
                label_smoothing=0.0,
                num_classes=num_classes,
                multi_label=reads is MultiLabelTargets,
            )
            if augment.mixes
            else None
        )
        self._whole = None
        if self._mix is not None and augment.mix_labels != "area":
            self._whole = PatchCutmix(self._mix, patch, for_tokens=augment.mix_labels == "tokens")
        self._epochs = augment.mix_epochs

    def rests(self, epochs: float) -> bool:
        """Whether no batch is mixed any more after so many epochs of its task."""
        return self._epochs is not None and epochs >= self._epochs

    def __call__(self, batch: Batch, seed: int, step: int) -> Batch:
        """labels int64 [B], or float32 [B, num_classes] -> float32 [B, num_classes]. The draw is a function
        of (seed, step): give each micro-batch its own step.

        With an even number of samples the image at the mirrored place is a view of another sample.
        """
        if self._mix is None:
            return batch
        with preserved_generators():
            seed_generators(seed, "mix", step)
            if self._whole is not None:
                images, targets = self._whole(batch.images, batch.targets)
                return replace(batch, images=images, targets=targets)
            # timm knows no frames: those of a clip are channels of one image, and so mixed alike
            images, labels = self._mix(batch.images.flatten(1, -3).clone(), batch.targets.labels)
        images = images.view(batch.images.shape)
        return replace(batch, images=images, targets=replace(batch.targets, labels=labels))
