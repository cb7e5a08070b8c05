"""An image and its class: members jpg (or jpeg, png, webp) and cls."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.coded import Framed, Jpeg
from pipeline.config.schema import DataConfig
from pipeline.data.augment.images import draws_anything, eval_transform, train_way
from pipeline.data.members.decode import IMAGES, decode_class
from pipeline.data.members.jpeg import image_reader
from pipeline.data.members.scaled import Scalable
from pipeline.data.samples.class_names import Labels
from pipeline.data.samples.protocol import DATASETS, image_and, lacking, refuse_unused
from pipeline.data.shards.manifest import Manifest
from pipeline.data.targets import ClassificationTargets
from pipeline.errors import ConfigError

UNUSED = ("short_side", "resize_range", "max_class_share", "photometric", "antialias")


@DATASETS.register("classification")
class Classification:
    """See DatasetSchema. The target of a sample is its class number."""

    gives = ClassificationTargets
    reads = (*IMAGES, "cls")

    def __init__(self, config: DataConfig, manifest: Manifest, *, labels: Labels | None = None):
        refuse_unused(config, UNUSED)
        refuse_equal_views(config)
        labels = labels or Labels.as_stored(manifest.classes)
        self.classes, self._numbers = labels.names, labels.numbers
        self._read = image_reader(config.decode, config.exif_rotation)
        self._train = train_way(config.augment, config.size)
        self._evaluate = eval_transform(config.augment, config.size)

    def missing(self, schema: Sequence[str]) -> str:
        return " and ".join(lacking(schema, "cls"))

    def decode(self, members: Mapping[str, bytes]) -> tuple[Tensor | Jpeg | Scalable, int]:
        image, label = image_and("cls", members, "classification", self.missing)
        return self._read(image), self._numbers[decode_class(label, len(self._numbers))]

    def train(self, image: Tensor | Jpeg | Scalable, target: int) -> tuple[Tensor | Framed, int]:
        return self._train(image), target

    def evaluate(self, image: Tensor, target: int) -> tuple[Tensor, int]:
        return self._evaluate(image), target

    def shortened(self, target: int) -> str:
        return ""

    def targets(self, targets: Sequence[int]) -> ClassificationTargets:
        return ClassificationTargets(torch.tensor(targets, dtype=torch.int64))


def refuse_equal_views(config: DataConfig) -> None:
    """Raises ConfigError where all views of a sample would be equal."""
    if config.views > 1 and not draws_anything(config.augment):
        raise ConfigError(
            f"data.views is {config.views}, but no random change is on, so all views of a sample would "
            "be equal; give data.views=1, or one of data.augment such as crop_scale=(0.3, 1)"
        )
