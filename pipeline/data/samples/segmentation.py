"""An image and its mask: members jpg (or jpeg, png, webp) and seg.png, in which label k is class k and 255 is
ignored."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.config.schema import DataConfig
from pipeline.data.augment.images_with_masks import JointCrop, resize_for_evaluation
from pipeline.data.members.decode import IMAGES, decode_image, decode_mask
from pipeline.data.members.masks import all_known, label_counts, strange_labels
from pipeline.data.members.turns import UPRIGHT, turn_of, turned_with_mask
from pipeline.data.samples.class_names import Labels
from pipeline.data.samples.protocol import DATASETS, MIXING, image_and, lacking, refuse_unused
from pipeline.data.shards.manifest import Manifest
from pipeline.data.targets import MaskTargets
from pipeline.errors import SampleError

UNUSED = ("crop_scale", "crop_ratio", "train_interpolation", "pad", "vflip", "rand_augment", "color_jitter")
UNUSED += ("grayscale", "on_device", "random_erasing", "erasing_mode", "erasing_count", *MIXING)
MASK = "seg.png"


@DATASETS.register("segmentation")
class Segmentation:
    """See DatasetSchema. The target of a sample is its mask, uint8 [H, W]; in evaluation of the size that it
    is stored in."""

    gives = MaskTargets
    reads = (*IMAGES, MASK)

    def __init__(self, config: DataConfig, manifest: Manifest, *, labels: Labels | None = None):
        refuse_unused(config, UNUSED, own=("tokenizer", "caption_field", "label_field", "decode"))
        labels = labels or Labels.as_stored(manifest.mask_names)
        self.classes, self._numbers = labels.names, labels.numbers
        self._train = JointCrop(config)
        self._augment = config.augment
        self._upright = config.exif_rotation

    def missing(self, schema: Sequence[str]) -> str:
        lacks = lacking(schema, MASK)
        if not self.classes:
            names = "the names of its mask's classes"
            lacks.append(f"{names} (classes.json beside the shards, then `dtem shards make index`)")
        return " and ".join(lacks)

    def decode(self, members: Mapping[str, bytes]) -> tuple[Tensor, Tensor]:
        image_data, mask_data = image_and(MASK, members, "segmentation", self.missing)
        turn = turn_of(image_data) if self._upright else UPRIGHT
        image, mask = turned_with_mask(decode_image(image_data, upright=False), decode_mask(mask_data), turn)
        if not all_known(mask.numpy(), len(self._numbers)):
            raise SampleError(strange_labels(label_counts(mask.numpy()), len(self._numbers)))
        return image, self._renumbered(mask)

    def _renumbered(self, mask: Tensor) -> Tensor:
        if self._numbers == tuple(range(len(self._numbers))):
            return mask
        table = torch.arange(256, dtype=torch.uint8)
        table[: len(self._numbers)] = torch.tensor(self._numbers, dtype=torch.uint8)
        return table[mask.long()]

    def train(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self._train(image, target)

    def evaluate(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return resize_for_evaluation(image, self._augment), target

    def shortened(self, target: Tensor) -> str:
        return ""

    def targets(self, targets: Sequence[Tensor]) -> MaskTargets:
        return MaskTargets(torch.stack(list(targets)))
