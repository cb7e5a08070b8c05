"""An image and its classes, any number of them: members jpg (or jpeg, png, webp) and json, which is a list of
names or numbers, or has one in the field `labels`."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.coded import Framed, Jpeg
from pipeline.config.schema import DataConfig
from pipeline.data.augment.images import eval_transform, train_way
from pipeline.data.members.decode import IMAGES
from pipeline.data.members.jpeg import image_reader
from pipeline.data.members.labels import decode_labels, numbers_of
from pipeline.data.members.scaled import Scalable
from pipeline.data.samples.class_names import Labels
from pipeline.data.samples.classification import UNUSED, refuse_equal_views
from pipeline.data.samples.protocol import DATASETS, image_and, lacking, refuse_unused
from pipeline.data.shards.manifest import Manifest
from pipeline.data.targets import MultiLabelTargets

MEMBER = "json"


@DATASETS.register("multi_label")
class MultiLabel:
    """See DatasetSchema. The target of a sample is the numbers of its classes."""

    gives = MultiLabelTargets
    reads = (*IMAGES, MEMBER)

    def __init__(self, config: DataConfig, manifest: Manifest, *, labels: Labels | None = None):
        refuse_unused(config, UNUSED, ("tokenizer", "caption_field"))
        refuse_equal_views(config)
        stored = manifest.classes
        labels = labels or Labels.as_stored(stored)
        self.classes, self._numbers = labels.names, labels.numbers
        self._places = {name: number for number, name in enumerate(stored)}
        self._field = config.label_field
        self._read = image_reader(config.decode, config.exif_rotation)
        self._train = train_way(config.augment, config.size)
        self._evaluate = eval_transform(config.augment, config.size)

    def missing(self, schema: Sequence[str]) -> str:
        lacks = lacking(schema, MEMBER, "json with the classes of each image")
        if not self.classes:
            lacks.append(
                "the names of its classes (classes.json beside the shards, then `dtem shards make index`)"
            )
        return " and ".join(lacks)

    def decode(self, members: Mapping[str, bytes]) -> tuple[Tensor | Jpeg | Scalable, tuple[int, ...]]:
        image, data = image_and(MEMBER, members, "multi_label", self.missing)
        stored = numbers_of(decode_labels(data, self._field), self._places, len(self._numbers))
        numbers = tuple(self._numbers[number] for number in stored)
        return self._read(image), numbers

    def train(
        self, image: Tensor | Jpeg | Scalable, target: tuple[int, ...]
    ) -> tuple[Tensor | Framed, tuple[int, ...]]:
        return self._train(image), target

    def evaluate(self, image: Tensor, target: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
        return self._evaluate(image), target

    def shortened(self, target: tuple[int, ...]) -> str:
        return ""

    def targets(self, targets: Sequence[tuple[int, ...]]) -> MultiLabelTargets:
        labels = torch.zeros(len(targets), len(self.classes))
        for row, numbers in zip(labels, targets, strict=True):
            row[list(numbers)] = 1
        return MultiLabelTargets(labels)
