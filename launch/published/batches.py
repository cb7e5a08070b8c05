"""Batches of pictures without labels, by worker processes or this one. B images, H x W pixels."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from launch.published.pictures import Pictures
from pipeline.config.schema import AugmentConfig, Preprocessing
from pipeline.data.augment.images import eval_transform, train_transform
from pipeline.data.loading import loader_of
from pipeline.data.members.decode import decode_image
from pipeline.data.quarantine import BadSample, Loaded, Quarantine
from pipeline.errors import PipelineError, SampleError
from pipeline.interfaces import Batch
from pipeline.pixels import Normalisation
from pipeline.rng import generator, preserved_generators, seed_generators

TASK = "pictures"
MAX_BAD = 100
"""Bad pictures in a row that are passed over."""

Address = tuple[int | str, ...]
Asked = Sequence[tuple[int, Address]]
"""Numbers of the pictures of a batch, each with the address of its random draws."""


class PictureBatches(Dataset[Loaded]):
    """Maps the numbers of pictures to a batch. Bad ones are left out, and told. trains: whether they are
    changed at random, or preprocessed as for evaluation; by `config`, to `size`.

    A process that is not forked makes it anew of what it is made of.
    """

    def __init__(self, pictures: Pictures, config: AugmentConfig, size: tuple[int, int], trains: bool):
        self._made_of = pictures, config, size, trains
        self._pictures = pictures
        self._transform = train_transform(config, size) if trains else eval_transform(config, size)
        wanted = config.preprocessing
        self._normalisation = Normalisation(wanted.mean, wanted.std)

    def __reduce__(self) -> tuple[type["PictureBatches"], tuple[Any, ...]]:
        return PictureBatches, self._made_of

    def __getitem__(self, asked: Asked) -> Loaded:
        images: list[Tensor] = []
        bad: list[BadSample] = []
        try:
            with preserved_generators():
                for place, (number, address) in enumerate(asked):
                    try:
                        image = decode_image(self._pictures.read(number))
                        seed_generators(*address)
                        images.append(self._transform(image))
                    except (SampleError, OSError) as err:
                        bad.append(BadSample(place, *self._pictures.place(number), str(err)))
        except PipelineError as err:
            return Loaded(None, len(asked), tuple(bad), err)
        batch = Batch(TASK, torch.stack(images), None, normalisation=self._normalisation) if images else None
        return Loaded(batch, len(asked), tuple(bad))


def training_batches(
    pictures: Pictures,
    numbers: Sequence[int],
    size: tuple[int, int],
    pixels: Preprocessing,
    *,
    batch_size: int,
    seed: int,
    workers: int,
    crop_scale: tuple[float, float],
) -> Generator[Batch, None, None]:
    """An endless stream of cropped and mirrored pictures, in a new order in each epoch. A batch has fewer
    where some cannot be read. Raises SampleError where MAX_BAD in a row cannot."""
    config = AugmentConfig(crop_scale=crop_scale, **asdict(pixels))
    batches = PictureBatches(pictures, config, size, True)
    yield from _loaded(batches, _endless(numbers, batch_size, seed), workers, len(numbers))


def held_out_batches(
    pictures: Pictures,
    numbers: Sequence[int],
    size: tuple[int, int],
    pixels: Preprocessing,
    *,
    batch_size: int,
    workers: int,
) -> Iterator[Batch]:
    """The pictures once, in their order, preprocessed as for evaluation. Raises as `training_batches`."""
    batches = PictureBatches(pictures, AugmentConfig(**asdict(pixels)), size, False)
    starts = range(0, len(numbers), batch_size)
    asked = ([(number, ()) for number in numbers[start : start + batch_size]] for start in starts)
    yield from _loaded(batches, asked, min(workers, len(starts)), len(numbers))


def _endless(numbers: Sequence[int], batch_size: int, seed: int) -> Iterator[Asked]:
    waiting: list[tuple[int, Address]] = []
    epoch = 0
    while True:
        while len(waiting) < batch_size:
            order = torch.randperm(len(numbers), generator=generator(seed, "pictures", epoch)).tolist()
            waiting += [(numbers[i], (seed, "augment", epoch, numbers[i])) for i in order]
            epoch += 1
        yield waiting[:batch_size]
        del waiting[:batch_size]


def _loaded(batches: PictureBatches, asked: Iterator[Asked], workers: int, total: int) -> Iterator[Batch]:
    quarantine = Quarantine(min(MAX_BAD, total - 1))
    for loaded in loader_of(batches, asked, workers, "auto"):
        if (batch := quarantine.checked_batch(loaded)) is not None:
            yield batch
