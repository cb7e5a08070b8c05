"""What a dataset schema offers to the stream: which members a sample has, how they decode, and how samples become a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pipeline.registry import Registry


@dataclass(frozen=True)
class Sample:
    """image: uint8 [3, H, W]. target: whatever the schema's `targets` takes. `key` and `epoch` address its randomness."""

    key: str
    epoch: int
    image: Tensor
    target: Any


class DatasetSchema(Protocol):
    """Built with (config: DataConfig, classes: tuple of names); holds options, never state."""

    def missing(self, schema: Sequence[str]) -> str:
        """What a set with these member suffixes lacks for this schema, in words; empty where it lacks nothing."""
        ...

    def decode(self, members: Mapping[str, bytes]) -> tuple[Tensor, Any]:
        """(image, target) of one sample. Raises SampleError."""
        ...

    def train(self, image: Tensor, target: Any) -> tuple[Tensor, Any]:
        """Random changes, drawn from the global CPU generators; the image becomes uint8 [3, img_size, img_size]."""
        ...

    def evaluate(self, image: Tensor, target: Any) -> tuple[Tensor, Any]:
        """The fixed way of evaluation samples."""
        ...

    def targets(self, targets: Sequence[Any]) -> Any:
        """The task's dataclass of tensors for a batch."""
        ...


DATASETS: Registry[DatasetSchema] = Registry("dataset schema")
