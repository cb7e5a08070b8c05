"""A clip and its class: a member mp4 (or m4v, mov, webm, mkv, avi), or numbered pictures (000.jpg, 001.jpg,
...; also jpeg, png, webp), and cls. T frames."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.config.schema import DataConfig
from pipeline.data.augment.clips import alike, eval_crops
from pipeline.data.augment.images import train_transform
from pipeline.data.members.clips import CLIP, VIDEOS, Clip, clip_in, of_clips
from pipeline.data.members.decode import decode_class
from pipeline.data.members.jpeg import image_reader
from pipeline.data.samples.class_names import Labels
from pipeline.data.samples.classification import UNUSED
from pipeline.data.samples.frame_choice import FrameChoice, taken
from pipeline.data.samples.protocol import DATASETS, refuse_unused, unfit
from pipeline.data.shards.manifest import Manifest
from pipeline.data.targets import ClipTargets
from pipeline.errors import ConfigError
from pipeline.extras import require


@DATASETS.register("video_classification")
class VideoClassification:
    """See DatasetSchema. The target of a sample is its class number.

    An image of it is a clip, uint8 [T, 3, H, W]: all frames under the same crop, flip and change of colours,
    drawn by the address of the sample, as is which frames they are. Evaluation has fixed clips; of several
    clips and crops they are uint8 [clips * crops, T, 3, H, W].
    """

    gives = ClipTargets

    def __init__(self, config: DataConfig, manifest: Manifest, *, labels: Labels | None = None):
        refuse_unused(config, (*UNUSED, "mix_labels"), clips=True)
        if config.decode == "cuda":
            raise ConfigError("data.decode is 'cuda', which decodes single images; give 'worker' or 'scaled'")
        if set(VIDEOS) & set(manifest.schema):
            require("video", "av", "store the frames as pictures: 000.jpg, 001.jpg, ...")
        labels = labels or Labels.as_stored(manifest.classes)
        self.classes, self._numbers = labels.names, labels.numbers
        self.reads: tuple[str, ...] = (*of_clips(manifest.schema), "cls")
        self._read = image_reader(config.decode, config.exif_rotation)
        self._choice, self._crops = FrameChoice.of(config), config.eval_crops
        self._train = train_transform(config.augment, config.size)
        self._evaluate = eval_crops(config.augment, config.size, config.eval_crops)

    def missing(self, schema: Sequence[str]) -> str:
        lacks = [] if of_clips(schema) else [CLIP]
        return " and ".join(lacks if "cls" in schema else [*lacks, "cls"])

    def decode(self, members: Mapping[str, bytes]) -> tuple[Clip, int]:
        clip = clip_in(members, self._read)
        if clip is None or "cls" not in members:
            raise unfit(members, "video_classification", self.missing)
        return clip, self._numbers[decode_class(members["cls"], len(self._numbers))]

    def train(self, image: Clip, target: int) -> tuple[Tensor, int]:
        numbers = self._choice.drawn(image.num_frames)
        return alike(self._train, taken(image, numbers)), target

    def evaluate(self, image: Clip, target: int) -> tuple[Tensor, int]:
        clips = self._choice.fixed(image.num_frames)
        numbers = sorted({number for clip in clips for number in clip})
        crops = dict(zip(numbers, map(self._evaluate, taken(image, numbers)), strict=True))
        views = [
            torch.stack([crops[number][crop] for number in clip])
            for clip in clips
            for crop in range(self._crops)
        ]
        return (torch.stack(views) if len(views) > 1 else views[0]), target

    def shortened(self, target: int) -> str:
        return ""

    def targets(self, targets: Sequence[int]) -> ClipTargets:
        return ClipTargets(torch.tensor(targets, dtype=torch.int64))
