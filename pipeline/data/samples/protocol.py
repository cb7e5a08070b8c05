"""Protocol of a dataset schema: the members of a sample, their decoding, and the way from samples to a
batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor

from pipeline.changes.changes import Change
from pipeline.coded import Framed
from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.members.decode import IMAGES
from pipeline.errors import ConfigError, SampleError
from pipeline.registry import Registry


@dataclass(frozen=True)
class Sample:
    """A sample, or one of its views, ready for a batch.

    image: uint8 [3, H, W], or what the device makes that of; of a clip uint8 [T, 3, H, W], or in evaluation
    [V, T, 3, H, W] of its V views. target: in the form that the schema's `targets` takes. address: key of its
    random draws. changes: of the image, on the device.
    """

    key: str
    address: tuple[int | str, ...]
    image: Tensor | Framed
    target: Any
    changes: tuple[Change, ...] = ()


class DatasetSchema(Protocol):
    """A dataset's kind of samples. Built with (config: DataConfig, manifest: Manifest); raises ConfigError
    for options that it does not use. It has options, never state.

    A schema with classes also takes labels: Labels, which renumber the labels of the shards.
    """

    gives: type
    """Dataclass of its targets."""
    classes: tuple[str, ...]
    """Class names of its labels 0, 1, ..."""
    reads: tuple[str, ...]
    """Suffixes of the members that `decode` looks at; no others are read."""

    def missing(self, schema: Sequence[str]) -> str:
        """Members that a set with these member suffixes lacks for this schema, in words; empty for none."""
        ...

    def decode(self, members: Mapping[str, bytes]) -> tuple[Any, Any]:
        """(image, target) of one sample. image: a tensor, or perhaps with data.decode `cuda` a Jpeg, with
        `scaled` a Scalable; of clips a Clip. Raises SampleError."""
        ...

    def train(self, image: Any, target: Any) -> tuple[Any, Any]:
        """(image, target) of a view, changed by draws from the global CPU generators; image uint8
        [3, *img_size], of a Jpeg a Framed, and of a clip [T, 3, *img_size]. Raises SampleError.

        Called once per view, so the arguments must not be changed.
        """
        ...

    def evaluate(self, image: Tensor, target: Any) -> tuple[Tensor, Any]:
        """(image, target) of an evaluation sample, by fixed preprocessing."""
        ...

    def shortened(self, target: Any) -> str:
        """The part that `train` or `evaluate` left out of a target to make it fit, in words that are the same
        for every sample; mostly empty."""
        ...

    def targets(self, targets: Sequence[Any]) -> Any:
        """Dataclass of the targets of a batch, whose images, and masks, have one size."""
        ...


MIXING = tuple("mixup cutmix cutmix_minmax mix_mode mix_prob mix_switch mix_epochs mix_labels".split())
"""Options of config.augment that need classes."""
CLIPS = ("frames", "stride", "eval_clips", "eval_crops")
"""Options of config of clips alone."""
DATASETS: Registry[DatasetSchema] = Registry("dataset schema")


def refuse_unused(
    config: DataConfig,
    augment: Sequence[str],
    own: Sequence[str] = ("tokenizer", "caption_field", "label_field"),
    *,
    clips: bool = False,
) -> None:
    """Raises ConfigError where an option that the schema does not use differs from its default. augment:
    options of config.augment. own: options of config itself. clips: whether it uses those of CLIPS."""
    if config.frames is not None and not clips:
        raise ConfigError(
            f"schema '{config.schema}' reads single images, and data.frames is {config.frames}, perhaps that "
            "of a backbone of clips; give a task of clips (video_classification), or a backbone of images"
        )
    own = own if clips else (*own, *CLIPS)
    given = [f"data.augment.{name}={value!r}" for name, value in _changed(config.augment, augment).items()]
    given += [f"data.{name}={value!r}" for name, value in _changed(config, own).items()]
    if given:
        raise ConfigError(f"schema '{config.schema}' does not use {', '.join(given)}; leave that out")


def _changed(section: AugmentConfig | DataConfig, names: Sequence[str]) -> dict[str, Any]:
    """Name -> value of the fields that differ from their defaults. Each of these fields has a plain
    default."""
    default = {field.name: field.default for field in fields(section)}
    return {name: getattr(section, name) for name in names if getattr(section, name) != default[name]}


def lacking(suffixes: Sequence[str], own: str, told: str = "") -> list[str]:
    """Of an image and the member `own`, those that members with these suffixes lack, in words. told: the
    words for `own`, if not its suffix."""
    lacks = [] if set(IMAGES) & set(suffixes) else [f"an image ({', '.join(IMAGES)})"]
    return lacks if own in suffixes else [*lacks, told or own]


def image_and(
    own: str, members: Mapping[str, bytes], schema: str, missing: Callable[[Sequence[str]], str]
) -> tuple[bytes, bytes]:
    """The bytes of a sample's image and of its member `own`. missing: DatasetSchema's, of this schema. Raises
    SampleError."""
    image = next((members[suffix] for suffix in IMAGES if suffix in members), None)
    if image is None or own not in members:
        raise unfit(members, schema, missing)
    return image, members[own]


def unfit(members: Mapping[str, bytes], schema: str, missing: Callable[[Sequence[str]], str]) -> SampleError:
    """The error of a sample that lacks members. missing: DatasetSchema's, of this schema."""
    return SampleError(
        f"of the members that {schema} reads it has {' and '.join(members) or 'none'}; {schema} needs "
        f"{missing(list(members))}"
    )
