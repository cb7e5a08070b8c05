"""Loaders that take part in `streaming.py`: ours, WebDataset with Pillow, torchvision's ImageFolder, and that
of timm. Each gives batches of one recipe without an end."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

CROP = 224


class Recipe(NamedTuple):
    """on_device: whether ours computes the policy there."""

    policy: str | None
    on_device: bool = False


def our_data(work: Path, args: argparse.Namespace, recipe: Recipe, workers: int = 0) -> Any:
    from pipeline.config.schema import AugmentConfig, DataConfig

    return DataConfig(
        schema="classification",
        train=str(work / "shards"),
        batch_size=args.batch,
        workers=workers,
        img_size=CROP,
        augment=AugmentConfig(
            rand_augment=recipe.policy, on_device=recipe.on_device, interpolation=args.interpolation
        ),
    )


def ours(work: Path, args: argparse.Namespace, recipe: Recipe, workers: int) -> Iterator[Any]:
    from pipeline.data.stream import build_stream

    data = our_data(work, args, recipe, workers)
    return iter(build_stream("pictures", data, seed=0, rank=0, world_size=1))


def transform_of_peers(args: argparse.Namespace, policy: str | None) -> Callable[[Image.Image], torch.Tensor]:
    """The recipe as scripts for ImageNet write it, on Pillow's images."""
    from timm.data.auto_augment import rand_augment_transform
    from torchvision import transforms

    interpolation = transforms.InterpolationMode(args.interpolation)
    augment = [] if policy is None else [rand_augment_transform(policy, {"img_mean": (124, 116, 104)})]
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(CROP, interpolation=interpolation),
            transforms.RandomHorizontalFlip(),
            *augment,
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def web_dataset(work: Path, args: argparse.Namespace, recipe: Recipe, workers: int) -> Iterator[Any]:
    import webdataset

    tars = [str(path) for path in sorted((work / "shards").glob("*.tar"))]
    samples = (
        webdataset.WebDataset(tars * 1000, shardshuffle=100, nodesplitter=None, empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform_of_peers(args, recipe.policy), int)
        .batched(args.batch, partial=False)
    )
    yield from webdataset.WebLoader(samples, batch_size=None, num_workers=workers)


def image_folder(work: Path, args: argparse.Namespace, recipe: Recipe, workers: int) -> Iterator[Any]:
    from torchvision.datasets import ImageFolder

    loader = torch.utils.data.DataLoader(
        ImageFolder(str(work / "pictures/train"), transform_of_peers(args, recipe.policy)),
        batch_size=args.batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def timms_loader(work: Path, args: argparse.Namespace, recipe: Recipe, workers: int) -> Iterator[Any]:
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(work / "pictures/train")),
        (3, CROP, CROP),
        args.batch,
        is_training=True,
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=workers > 0,
        interpolation=args.interpolation,
        auto_augment=recipe.policy,
        color_jitter=0.0,
    )
    while True:
        yield from loader


LOADERS = {"ours": ours, "webdataset": web_dataset, "imagefolder": image_folder, "timm": timms_loader}
