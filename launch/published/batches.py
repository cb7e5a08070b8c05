"""Batches of pictures without labels, by worker processes or this one. B images, H x W pixels."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from launch.published.pictures import Pictures
from pipeline.config.schema import AugmentConfig, Preprocessing
from pipeline.data.augment.images import Transform, eval_transform, train_transform
from pipeline.data.members.decode import decode_image
from pipeline.data.quarantine import BadSample, Loaded, Quarantine
from pipeline.errors import PipelineError, SampleError
from pipeline.interfaces import Batch
from pipeline.pixels import Normalisation
from pipeline.processes import end_with_parent
from pipeline.rng import generator, preserved_generators, seed_generators

TASK = "pictures"
MAX_BAD = 100
"""Bad pictures in a row that are passed over."""

Address = tuple[int | str, ...]
Asked = Sequence[tuple[int, Address]]
"""Numbers of the pictures of a batch, each with the address of its random draws."""


class PictureBatches(Dataset[Loaded]):
    """Maps the numbers of pictures to a batch. Bad ones are left out, and told."""

    def __init__(self, pictures: Pictures, transform: Transform, pixels: Preprocessing):
        self._pictures, self._transform = pictures, transform
        self._normalisation = Normalisation(pixels.mean, pixels.std)

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
    config = AugmentConfig(
        crop_scale=crop_scale, interpolation=pixels.interpolation, mean=pixels.mean, std=pixels.std
    )
    asked = _endless(numbers, batch_size, seed)
    yield from _loaded(pictures, train_transform(config, size), pixels, asked, workers, len(numbers))


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
    config = AugmentConfig(
        crop_pct=pixels.crop_pct, crop_mode=pixels.crop_mode, interpolation=pixels.interpolation
    )
    starts = range(0, len(numbers), batch_size)
    asked = ([(number, ()) for number in numbers[start : start + batch_size]] for start in starts)
    workers = min(workers, len(starts))
    yield from _loaded(pictures, eval_transform(config, size), pixels, asked, workers, len(numbers))


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


def _loaded(
    pictures: Pictures,
    transform: Transform,
    pixels: Preprocessing,
    asked: Iterator[Asked],
    workers: int,
    total: int,
) -> Iterator[Batch]:
    quarantine = Quarantine(min(MAX_BAD, total - 1))
    loader: DataLoader[Loaded] = DataLoader(
        PictureBatches(pictures, transform, pixels),
        batch_size=None,
        sampler=asked,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_it_is,
        worker_init_fn=_as_a_child,
        # else the loader draws the unused seeds of its workers from the global generator
        generator=torch.Generator(),
    )
    for loaded in loader:
        if (batch := quarantine.checked_batch(loaded)) is not None:
            yield batch


def _as_a_child(worker: int) -> None:
    end_with_parent()


def _as_it_is(loaded: Any) -> Any:
    return loaded
