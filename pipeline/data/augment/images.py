"""Random changes of training images and the fixed way of evaluation images, from `AugmentConfig`.

Draws come from the global CPU generators, which the caller sets to the sample's address (see rng.py) before
each call. Images are uint8 [3, H, W]: they are normalised on the device (see pipeline/pixels.py).
"""

import math
import random
from collections.abc import Callable

import torch
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.coded import Framed, Jpeg
from pipeline.config.schema import AugmentConfig, ImgSize, height_width
from pipeline.data.augment.policies import jitter_strengths, policy_of, train_interpolation
from pipeline.data.members.scaled import Scalable
from pipeline.framing import Framing, Window, flipped
from pipeline.pixels import Patch

Transform = Callable[[Tensor], Tensor]
INTERPOLATIONS = ("bilinear", "bicubic")
"""Between which `random` draws."""
MAX_ASPECT = 8


def train_transform(config: AugmentConfig, img_size: ImgSize) -> Callable[[Tensor | Scalable], Tensor]:
    """uint8 [3, H, W] -> uint8 [3, *img_size]: crop, flips, RandAugment, jitter of colours, grey; in
    timm's order. A `Scalable` is cropped by the same draws, and does not go with padding (DataConfig).

    timm leaves the jitter out under RandAugment; here it is off unless it is asked for.
    """
    size, draw_flips = height_width(img_size), flips(config)
    crop: Callable = pad_crop(config.pad, size) if config.pad else resized_crop(config, size)
    # those on the device are drawn by draws.py
    colours = [] if config.on_device else _colours(config, min(size))

    def transform(picture: Tensor | Scalable) -> Tensor:
        image = flipped(crop(picture), *draw_flips())
        for change in colours:
            image = change(image)
        return image

    return transform


def train_way(
    config: AugmentConfig, img_size: ImgSize
) -> Callable[[Tensor | Jpeg | Scalable], Tensor | Framed]:
    """`train_transform`, also of files that the device decodes: these are framed, by the same draws. Colours
    and padding do not go with files (DataConfig)."""
    size, draw_flips = height_width(img_size), flips(config)
    transform, draw_window = train_transform(config, img_size), windows(config, size)

    def way(image: Tensor | Jpeg | Scalable) -> Tensor | Framed:
        if not isinstance(image, Jpeg):
            return transform(image)
        window = draw_window(image.height, image.width)
        return Framed(image, Framing(window, *draw_flips()))

    return way


def flips(config: AugmentConfig) -> Callable[[], tuple[bool, bool]]:
    """Draws whether an image is mirrored, and whether it is upside down."""
    hflip = 0.5 if config.hflip is None else config.hflip

    def draw() -> tuple[bool, bool]:
        mirrored = random.random() < hflip
        return mirrored, bool(config.vflip) and random.random() < config.vflip

    return draw


def draws_anything(config: AugmentConfig) -> bool:
    """Whether `train_transform` or `eraser` change an image at random, so that views of it differ."""
    crops, jitters = config.pad or config.crop_scale != (1, 1), any(jitter_strengths(config))
    flips = config.hflip != 0 or config.vflip
    return bool(crops or flips or config.rand_augment or jitters or config.grayscale or config.random_erasing)


def eval_transform(config: AugmentConfig, img_size: ImgSize) -> Transform:
    """uint8 [3, H, W] -> uint8 [3, *img_size]: resized to just cover img_size / crop_pct (crop_mode `squash`:
    to have just its sides), then the centre crop.

    The pixels are those of timm's evaluation transform, but for roundings of at most 2 of 255 (squashed: 5):
    timm resizes by Pillow, which takes six times as long as torchvision does on tensors.
    """
    (height, width), wanted = height_width(img_size), config.preprocessing
    resized = math.floor(height / wanted.crop_pct), math.floor(width / wanted.crop_pct)
    interpolation = F.InterpolationMode(wanted.interpolation)

    def transform(image: Tensor) -> Tensor:
        if wanted.crop_mode == "squash":
            image = F.resize(image, list(resized), interpolation=interpolation, antialias=True)
        else:
            image = resize_to_cover(image, resized, interpolation)
        return image if image.shape[-2:] == (height, width) else F.center_crop(image, [height, width])

    return transform


def pad_crop(pad: int, size: tuple[int, int]) -> Transform:
    """A random crop at full scale out of the image with reflected borders of `pad` pixels."""

    def transform(image: Tensor) -> Tensor:
        if image.shape[-2:] != size:
            image = F.center_crop(resize_to_cover(image, size, F.InterpolationMode.BILINEAR), list(size))
        padded = F.pad(image, [pad], padding_mode="reflect")
        top, left = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
        return padded[:, top : top + size[0], left : left + size[1]]

    return transform


def resized_crop(config: AugmentConfig, size: tuple[int, int]) -> Callable[[Tensor | Scalable], Tensor]:
    """A random area and aspect, resized to (height, width)."""
    draw = windows(config, size)

    def crop(picture: Tensor | Scalable) -> Tensor:
        window = draw(*picture.shape[-2:])
        return picture.cut(window) if isinstance(picture, Scalable) else window(picture)

    return crop


def windows(config: AugmentConfig, size: tuple[int, int]) -> Callable[[int, int], Window]:
    """Draws the window of a picture of (height, width) pixels: a random area and aspect."""
    given = train_interpolation(config)
    modes = INTERPOLATIONS if given == "random" else (given,)

    def draw(high: int, wide: int) -> Window:
        top, left, height, width = 0, 0, high, wide
        if config.crop_scale != (1, 1):
            # timm asks for nothing but the size
            picture = torch.empty((3, high, wide), dtype=torch.uint8, device="meta")
            top, left, height, width = RandomResizedCropAndInterpolation.get_params(
                picture, config.crop_scale, config.crop_ratio
            )
        interpolation = random.choice(modes) if len(modes) > 1 else modes[0]
        # of an image of one pixel, the area may round to none
        return Window(top, left, max(1, height), max(1, width), size, interpolation)

    return draw


def resize_to_cover(image: Tensor, size: tuple[int, int], interpolation: F.InterpolationMode) -> Tensor:
    """The smallest picture of its aspect that covers (height, width): where these are equal, the shorter side
    becomes as long.

    Of a thread of pixels only the middle is taken: enlarged as a whole it would fill the memory.
    """
    height, width = image.shape[-2:]
    longest = MAX_ASPECT * min(height, width)
    if max(height, width) > longest:
        image = F.center_crop(image, [min(height, longest), min(width, longest)])
        height, width = image.shape[-2:]
    high = size[0] * width >= size[1] * height  # the height decides
    # as torchvision does for a square, and timm for another crop
    whole = int if size[0] == size[1] else round
    covering = (
        [size[0], whole(size[0] * width / height)] if high else [whole(size[1] * height / width), size[1]]
    )
    return F.resize(image, covering, interpolation=interpolation, antialias=True)


def _colours(config: AugmentConfig, size: int) -> list[Transform]:
    changes: list[Transform] = [_rand_augment(config, size)] if config.rand_augment else []
    jitter = jitter_strengths(config)
    changes += [v2.ColorJitter(*jitter)] if any(jitter) else []
    return [*changes, v2.RandomGrayscale(config.grayscale)] if config.grayscale else changes


def _rand_augment(config: AugmentConfig, size: int) -> Transform:
    policy = policy_of(config, size)
    if policy is None:
        given = train_interpolation(config)
        fixed = config.preprocessing.interpolation if given == "random" else given
        policy = v2.TrivialAugmentWide(interpolation=F.InterpolationMode(fixed))
    return lambda image: F.pil_to_tensor(policy(F.to_pil_image(image)))


def eraser(config: AugmentConfig) -> Callable[[torch.Size], list[Patch]]:
    """timm's random erasing: shape [3, H, W] of an image -> the patches drawn for it, which may overlap; the
    last one is on top."""
    erase = RandomErasing(
        config.random_erasing, mode=config.erasing_mode, max_count=config.erasing_count, device="cpu"
    )

    def draw(shape: torch.Size) -> list[Patch]:
        canvas = _Canvas(shape)
        erase(canvas)
        return canvas.patches

    return draw


class _Canvas:
    """Stands for a normalised image, and keeps what timm's eraser writes into it."""

    dtype = torch.float32

    def __init__(self, shape: torch.Size):
        self._shape = shape
        self.patches: list[Patch] = []

    def size(self) -> torch.Size:
        return self._shape

    def __setitem__(self, where: tuple[slice, slice, slice], noise: Tensor) -> None:
        _, rows, columns = where
        size = 3, rows.stop - rows.start, columns.stop - columns.start
        self.patches.append(Patch(rows.start, columns.start, noise.expand(size)))
