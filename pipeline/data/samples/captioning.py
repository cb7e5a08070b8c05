"""An image and its captions: members jpg (or jpeg, png, webp), and txt or json: {"captions": [...]}, or a
field of another name."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.coded import Framed, Jpeg
from pipeline.config.schema import DataConfig
from pipeline.data.augment.images import eval_transform, train_way
from pipeline.data.members.decode import IMAGES, decode_captions, decode_text
from pipeline.data.members.jpeg import image_reader
from pipeline.data.members.scaled import Scalable
from pipeline.data.samples.protocol import DATASETS, MIXING, image_and, lacking, refuse_unused
from pipeline.data.samples.text import TOKENIZERS, build_tokenizer
from pipeline.data.shards.manifest import Manifest
from pipeline.data.targets import CaptionTargets
from pipeline.errors import ConfigError

UNUSED = (*MIXING, "short_side", "resize_range", "max_class_share", "photometric", "antialias")
MULTIPLE = 8
"""Batches are padded to a multiple of it: few lengths for kernels and compilers to meet."""


@dataclass(frozen=True)
class Caption:
    """tokens: of the first of the references, or in training of a drawn caption. cut: whether they leave out
    its end."""

    tokens: list[int]
    cut: bool
    references: tuple[str, ...] = ()


@DATASETS.register("captioning")
class Captioning:
    """See DatasetSchema. A sample decodes to all of its captions; training draws one of them, a function of
    (seed, epoch, shard, key)."""

    classes: tuple[str, ...] = ()

    gives = CaptionTargets
    reads: tuple[str, ...] = (*IMAGES, "txt", "json")

    def __init__(self, config: DataConfig, manifest: Manifest):
        refuse_unused(config, UNUSED, own=("label_field",))
        if config.tokenizer is None:
            names = ", ".join(TOKENIZERS.names())
            raise ConfigError(
                f"schema '{config.schema}' needs data.tokenizer, for instance dict(type='clip') (known: "
                f"{names})"
            )
        self._field = config.caption_field
        if self._field is not None:
            self.reads = (*IMAGES, "json")
        self._tokenizer = build_tokenizer(config.tokenizer)
        unflipped = replace(config.augment, hflip=config.augment.hflip or 0.0)
        self._read = image_reader(config.decode, config.exif_rotation)
        self._train = train_way(unflipped, config.size)
        self._evaluate = eval_transform(config.augment, config.size)

    def missing(self, schema: Sequence[str]) -> str:
        if self._field is None and "txt" in schema:
            return " and ".join(lacking(schema, "txt"))
        told = (
            'json, {"captions": [...]}, or txt' if self._field is None else f'json, {{"{self._field}": ...}}'
        )
        return " and ".join(lacking(schema, "json", told))

    def decode(self, members: Mapping[str, bytes]) -> tuple[Tensor | Jpeg | Scalable, tuple[str, ...]]:
        own = "txt" if self._field is None and "txt" in members else "json"
        image, captions = image_and(own, members, "captioning", self.missing)
        texts = (
            decode_text(captions) if own == "txt" else decode_captions(captions, self._field or "captions")
        )
        return self._read(image), texts

    def train(
        self, image: Tensor | Jpeg | Scalable, target: tuple[str, ...]
    ) -> tuple[Tensor | Framed, Caption]:
        caption = self._caption(random.choice(target))  # before the image, whose draws depend on its shape
        return self._train(image), caption

    def evaluate(self, image: Tensor, target: tuple[str, ...]) -> tuple[Tensor, Caption]:
        return self._evaluate(image), self._caption(target[0], target)

    def shortened(self, target: Caption) -> str:
        if not target.cut:
            return ""
        limit = f"{self._tokenizer.context_length} tokens of data.tokenizer's context_length"
        return f"the end of a caption, which has more than the {limit}"

    def targets(self, targets: Sequence[Caption]) -> CaptionTargets:
        longest = max(len(target.tokens) for target in targets)
        length = min(-(-longest // MULTIPLE) * MULTIPLE, self._tokenizer.context_length)
        tokens = torch.full((len(targets), length), self._tokenizer.pad_id)
        for row, target in zip(tokens, targets, strict=True):
            row[: len(target.tokens)] = torch.tensor(target.tokens)
        return CaptionTargets(tokens, tuple(target.references for target in targets))

    def _caption(self, text: str, references: tuple[str, ...] = ()) -> Caption:
        tokens = self._tokenizer.encode(text)
        return Caption(
            tokens, len(tokens) == self._tokenizer.context_length and self._tokenizer.is_cut(text), references
        )
