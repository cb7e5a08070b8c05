"""`load_run`: the model of a run, or a published one, and what it says of images."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launch.predict.images import Picture, pictures_of
from launch.predict.models import Predicting, PublishedModel, RunModel, Seen
from launch.predict.results import Prediction, Unread
from launch.saved.device import device_and_precision
from launch.saved.reductions import asked_reduction
from launch.saved.run import read_run
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.published import is_published, open_published
from pipeline.errors import ConfigError, SampleError
from pipeline.merging.schedule import ReductionSpec

BATCH = 16


class LoadedRun:
    """The model of a run or a published one, ready to predict. It needs no engine and no data."""

    def __init__(self, name: str, predicting: Predicting):
        self.name, self.predicting = name, predicting

    @property
    def model(self) -> nn.Module:
        """The model itself, in evaluation mode: a `MultiTaskModel` of a run, else the patched model."""
        return self.predicting.model

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.predicting.tasks

    @property
    def device(self) -> torch.device:
        return self.predicting.device

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`."""
        return self.predicting.precision

    def predict(
        self,
        images: Any,
        *,
        task: str | None = None,
        top: int = 5,
        batch_size: int = BATCH,
        groups: bool = False,
    ) -> list[Prediction]:
        """What the model says of each image, in their order: `Classes`, `Caption` or `Mask`.

        images: one, or any number: paths of files or folders, PIL images, uint8 arrays [H, W, 3] or [H, W],
        tensors [3, H, W] (uint8, or floats in [0, 1]), or a batch of those as an array or tensor of four
        dimensions. They are preprocessed as in evaluation. task: needed where the run has several. top: most
        classes of an image. groups: whether to tell which patches were merged. Raises SampleError for an
        image that cannot be read, and ConfigError.
        """
        found: list[Prediction] = []
        for own in self.stream(
            images, tasks=[self._only(task)], top=top, batch_size=batch_size, groups=groups
        ):
            if isinstance(own, Unread):
                raise SampleError(f"{own.image}: {own.reason}")
            found.append(own)
        return found

    def stream(
        self,
        images: Any,
        *,
        tasks: Sequence[str] | None = None,
        top: int = 5,
        batch_size: int = BATCH,
        groups: bool = False,
    ) -> Iterator[Prediction | Unread]:
        """As `predict`, for any number of images and several tasks (None: all), whose predictions of an image
        are neighbours. An image that cannot be read is an `Unread` in its place. Memory holds one batch."""
        chosen = self.chosen(tasks)
        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; give 1 or more")
        for chunk in _chunks(pictures_of(images), batch_size):
            by_task = [self._of_chunk(task, chunk, top, groups) for task in chosen]
            for number, picture in enumerate(chunk):
                found = [own[number] for own in by_task]
                if unread := next((own for own in (picture, *found) if isinstance(own, Unread)), None):
                    yield unread
                else:
                    yield from (own for own in found if isinstance(own, Prediction))

    def chosen(self, tasks: Sequence[str] | None) -> list[str]:
        """The tasks of these names; None: all. Raises ConfigError."""
        chosen = list(self.tasks) if tasks is None else list(tasks)
        if unknown := [task for task in chosen if task not in self.tasks]:
            raise ConfigError(f"{self.name} has no task '{unknown[0]}'; it has {', '.join(self.tasks)}")
        return chosen

    def _only(self, task: str | None) -> str:
        if task is None and len(self.tasks) > 1:
            raise ConfigError(f"{self.name} has several tasks; give task, one of {', '.join(self.tasks)}")
        return task or next(iter(self.tasks))

    def _of_chunk(
        self, task: str, chunk: Sequence[Picture | Unread], top: int, groups: bool
    ) -> list[Prediction | Unread]:
        """Those of each image. Images of one size go through the model together."""
        found: dict[int, Prediction | Unread] = {}
        alike: dict[Any, list[tuple[int, Seen]]] = {}
        for number, picture in enumerate(chunk):
            if isinstance(picture, Unread):
                found[number] = picture
                continue
            try:
                seen = self.predicting.seen(task, picture.pixels)
            except SampleError as err:
                found[number] = Unread(picture.name, str(err))
                continue
            alike.setdefault((seen.shape, picture.pixels.shape), []).append((number, (picture, seen)))
        for own in alike.values():
            group = [pair for _, pair in own]
            made = self.predicting.predict(task, group, top=top, groups=groups)
            found |= {number: one for (number, _), one in zip(own, made, strict=True)}
        return [found[number] for number in range(len(chunk))]


def load_run(
    run: str | Path,
    *,
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    policy: str | None = None,
    reduction: ReductionSpec | str | None = None,
    device: str | None = None,
    precision: str | None = None,
    adapter: str | None = None,
    weights: str | None = None,
    pretrained: bool = True,
    img_size: int | None = None,
) -> LoadedRun:
    """The model of a run, to predict with. run: folder of a run or of a checkpoint, or a published classifier
    such as `timm:deit_small_patch16_224.fb_in1k`, `local-dir:FOLDER`, `hf-hub:USER/NAME` or `hf:NAME`.

    policy, reduction: another merge than the run's; a published model merges only where they or an adapter
    say so; reduction also `auto:R@IMAGES`, of R those merges that pay for so many images at once, measured
    once for each task (docs/speed.md). device: None is a GPU where there is one. precision: `fp32` or `bf16`;
    None is the run's. checkpoint, overrides (`a.b=value`): of a run. adapter, weights, pretrained, img_size:
    of a published model, see `open_published`. Raises ConfigError and CheckpointError.
    """
    name = str(run)
    if precision not in (None, "fp32", "bf16"):
        raise ConfigError(f"precision is {precision!r}; give fp32 or bf16")
    asked = asked_reduction(reduction) if isinstance(reduction, str) else reduction
    place, fast = device_and_precision(device, precision)
    if not is_published(name):
        of_published = {"adapter": adapter, "weights": weights, "img_size": img_size}
        of_published |= {} if pretrained else {"pretrained": False}
        if given := [key for key, value in of_published.items() if value is not None]:
            raise ConfigError(f"{given[0]} goes with a published model, such as timm:NAME, not with a run")
        saved = read_run(run, checkpoint, overrides)
        usual = precision or saved.config.engine.precision
        return LoadedRun(str(saved), RunModel(saved, place, usual, policy=policy, reduction=asked))
    if overrides or checkpoint != "best":
        raise ConfigError("checkpoint and overrides go with a run, not with a published model")
    loaded = None if adapter is None else load_adapter(adapter)
    published = open_published(name, weights=weights, pretrained=pretrained, img_size=img_size)
    return LoadedRun(
        name, PublishedModel(published, place, fast, policy=policy, reduction=asked, adapter=loaded)
    )


def _chunks(pictures: Iterable[Picture | Unread], size: int) -> Iterator[list[Picture | Unread]]:
    chunk: list[Picture | Unread] = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
