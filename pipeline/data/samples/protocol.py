"""What a dataset schema offers to the stream: which members a sample has, how they decode, and how samples
become a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.errors import ConfigError
from pipeline.registry import Registry


@dataclass(frozen=True)
class Sample:
    """A sample as a batch holds it, or one of its views.

    image: uint8 [3, H, W]. target: whatever the schema's `targets` takes. address: of its randomness.
    """

    key: str
    address: tuple[int | str, ...]
    image: Tensor
    target: Any


class DatasetSchema(Protocol):
    """Built with (config: DataConfig, manifest: Manifest), ConfigError for options that it does not use;
    holds options, never state.

    Where its samples have classes it also takes labels: Labels, what the labels of the shards become.
    """

    gives: type
    """The dataclass of its targets."""
    classes: tuple[str, ...]
    """Names of what its labels 0, 1, ... stand for."""

    def missing(self, schema: Sequence[str]) -> str:
        """What a set with these member suffixes lacks for this schema, in words; empty where it lacks
        nothing."""
        ...

    def decode(self, members: Mapping[str, bytes]) -> tuple[Tensor, Any]:
        """(image, target) of one sample. Raises SampleError."""
        ...

    def train(self, image: Tensor, target: Any) -> tuple[Tensor, Any]:
        """Random changes, drawn from the global CPU generators; the image becomes uint8 [3, *img_size].

        Called once for each view: what is given stays as it is.
        """
        ...

    def evaluate(self, image: Tensor, target: Any) -> tuple[Tensor, Any]:
        """The fixed way of evaluation samples."""
        ...

    def shortened(self, target: Any) -> str:
        """What `train` or `evaluate` left out of a target to make it fit, in words that are the same for
        every sample; mostly nothing."""
        ...

    def targets(self, targets: Sequence[Any]) -> Any:
        """The task's dataclass for a batch. Raises ConfigError where they do not stack (see `stacked`)."""
        ...


DATASETS: Registry[DatasetSchema] = Registry("dataset schema")


def refuse_unused(config: DataConfig, augment: Sequence[str], own: Sequence[str] = ("tokenizer",)) -> None:
    """ConfigError where an option that the schema does not use (of config.augment, or config's own) differs
    from its default."""
    given = [f"data.augment.{name}={value!r}" for name, value in _changed(config.augment, augment).items()]
    given += [f"data.{name}={value!r}" for name, value in _changed(config, own).items()]
    if given:
        raise ConfigError(f"schema '{config.schema}' does not use {', '.join(given)}; leave that out")


def _changed(section: AugmentConfig | DataConfig, names: Sequence[str]) -> dict[str, Any]:
    """The values, by name, that are not their field's default; every field that is asked for has a plain
    one."""
    default = {field.name: field.default for field in fields(section)}
    return {name: getattr(section, name) for name in names if getattr(section, name) != default[name]}


def stacked(tensors: Sequence[Tensor], what: str) -> Tensor:
    """[...] of equal shapes -> [B, ...]; ConfigError for different ones, which only evaluation in the stored
    sizes has."""
    shapes = sorted({tuple(tensor.shape[-2:]) for tensor in tensors})
    if len(shapes) > 1:
        sizes = " and ".join(f"{height}x{width}" for height, width in shapes[:2])
        raise ConfigError(
            f"a batch holds {what} of different sizes ({sizes}), which do not stack; give "
            "data.eval_batch_size=1"
        )
    return torch.stack(list(tensors))
