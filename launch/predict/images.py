"""Images in any form as uint8 pixels. H x W pixels."""

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from launch.predict.results import Unread
from launch.published.pictures import find_pictures
from pipeline.data.layouts.picture_files import SUFFIXES, read_picture
from pipeline.data.members.decode import decode_image
from pipeline.data.shards.locations import tar_names
from pipeline.errors import ConfigError, SampleError

TAKEN = (
    "give paths, PIL images, uint8 arrays [H, W, 3] or [H, W], or tensors [3, H, W] that are uint8 or "
    "floats in [0, 1]"
)


@dataclass(frozen=True)
class Picture:
    """name: see `Prediction.image`. pixels: uint8 [3, H, W]."""

    name: str
    pixels: Tensor


def pictures_of(images: Any) -> Iterator[Picture | Unread]:
    """The pixels of each image, one at a time. images: an image, or any number of them: paths of files and
    folders, PIL images, arrays, tensors; an array or tensor of four dimensions is a batch. Raises ConfigError
    for what is none of these."""
    for number, image in enumerate(_each(images)):
        if isinstance(image, str | os.PathLike):
            for path in files_of([os.fspath(image)]):
                yield _from_file(path)
        else:
            yield Picture(f"image {number}", _pixels(image))


def files_of(paths: Iterable[str]) -> Iterator[str]:
    """The picture files that paths name: themselves, or all below a folder, by name. Raises ConfigError for a
    path that is not there, and a folder without pictures."""
    for path in paths:
        if not os.path.isdir(path):
            if not os.path.exists(path):
                raise ConfigError(f"there is no image or folder {path}")
            yield path
            continue
        if tar_names(path):
            raise ConfigError(
                f"{path} holds shards, not pictures; `dtem evaluate --predictions` takes shards"
            )
        pictures = find_pictures(path)
        yield from (os.path.join(*pictures.place(number)) for number in range(len(pictures)))


def _each(images: Any) -> Iterable[Any]:
    if isinstance(images, Tensor | np.ndarray):
        return images if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if not isinstance(images, Iterable):
        raise ConfigError(f"{type(images).__name__} is no image; {TAKEN}")
    return images


def _from_file(path: str) -> Picture | Unread:
    try:
        if not path.lower().endswith(SUFFIXES):
            raise SampleError(f"its ending is none of {', '.join(SUFFIXES)}")
        # a pipe has no end that anybody would see
        if not os.path.isfile(path):
            raise SampleError("it is no file")
        return Picture(path, decode_image(read_picture(path, None)[1]))
    except (SampleError, OSError) as err:
        return Unread(path, str(err).removeprefix(f"{path}: "))


def _pixels(image: Any) -> Tensor:
    """uint8 [3, H, W]. Raises ConfigError."""
    if isinstance(image, Image.Image):
        return _of_pillow(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            raise ConfigError(f"an array of {image.dtype} {list(image.shape)} is no image; {TAKEN}")
        return _of_pillow(Image.fromarray(image))
    if not isinstance(image, Tensor):
        raise ConfigError(f"{type(image).__name__} is no image; {TAKEN}")
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise ConfigError(f"a tensor {list(image.shape)} is no image; {TAKEN}")
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.is_floating_point() or not bool(((image >= 0) & (image <= 1)).all()):
        raise ConfigError(f"a tensor of {image.dtype} has other values than pixels in [0, 1]; {TAKEN}")
    return (image.detach().float().cpu() * 255).round().to(torch.uint8)


def _of_pillow(image: Image.Image) -> Tensor:
    """As the file of the image would be read: grey, palette and 16-bit images as well."""
    if image.mode == "RGB":
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    out = io.BytesIO()
    try:
        image.save(out, "PNG")
        return decode_image(out.getvalue())
    except (OSError, ValueError, SampleError) as err:
        raise ConfigError(
            f"a PIL image of mode {image.mode} cannot be taken ({err}); convert it to RGB"
        ) from err


def path_stem(name: str) -> str:
    """A part of a name of a file, for an image of this name."""
    stem = Path(name).stem[:80]
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in stem) or "image"
