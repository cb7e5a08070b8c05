"""Random changes that an image and its mask undergo together, and the fixed way of evaluation images.

Draws come from the global CPU generators, as in augment.py. The window is cut out of the stored image and
then resized, which is the resized image's window up to rounding, and does not pay for what lies outside of
it. The order is MMSegmentation's: resize, crop, flip, colours, padding. Masks are resized by their pixels'
centres, where OpenCV takes corners: half a stored pixel, by which MMSegmentation's masks lie off their
images.
"""

import random
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.augment.photometric import distort
from pipeline.data.members.decode import MAX_PIXELS
from pipeline.data.members.masks import IGNORED, label_counts
from pipeline.errors import SampleError

Window = tuple[int, int, int, int]
"""top, left, height, width in the stored image."""
REDRAWS = 10
NEAREST = (
    F.InterpolationMode.NEAREST_EXACT
)  # of the pixels' centres, as the image's interpolations: NEAREST would shift the mask


class JointCrop:
    """image uint8 [3, H, W], mask uint8 [H, W] -> both [.., *img_size]: random resize, crop, flip and
    colours.

    What is smaller than the crop is padded at the right and below: the image with the mean colour, the mask
    with 255.
    """

    def __init__(self, config: DataConfig):
        self._config, self._size = config.augment, config.size
        self._interpolation = F.InterpolationMode(config.augment.preprocessing.interpolation)
        self._colours = (
            distort
            if config.augment.photometric == "mmseg"
            else _factors()
            if config.augment.photometric
            else None
        )
        self._fill = torch.tensor(
            [round(255 * channel) for channel in config.augment.preprocessing.mean], dtype=torch.uint8
        ).view(3, 1, 1)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        window, mask = self._draw(mask)
        image = F.resized_crop(
            image,
            *window,
            size=list(mask.shape),
            interpolation=self._interpolation,
            antialias=self._config.antialias,
        )
        if random.random() < (0.5 if self._config.hflip is None else self._config.hflip):
            image, mask = image.flip(-1), mask.flip(-1)
        if self._colours is not None:
            image = self._colours(image)
        return self._padded(image, mask)

    def _draw(self, mask: Tensor) -> tuple[Window, Tensor]:
        """A window and the mask in it, resized; drawn again where one class fills too much of it; the last
        draw is taken as it is."""
        scale = random.uniform(*self._config.resize_range) * _stored_scale(mask.shape, self._config)
        height, width = (
            min(side, max(1, round(crop / scale))) for side, crop in zip(mask.shape, self._size, strict=True)
        )
        target = [
            min(crop, max(1, round(cut * scale)))
            for cut, crop in zip((height, width), self._size, strict=True)
        ]

        def draw() -> tuple[Window, Tensor]:
            window = (
                random.randint(0, mask.shape[0] - height),
                random.randint(0, mask.shape[1] - width),
                height,
                width,
            )
            return window, F.resized_crop(mask[None], *window, size=target, interpolation=NEAREST)[0]

        window, drawn = draw()
        for _ in range(REDRAWS):
            if self._config.max_class_share == 1 or _largest_share(drawn) < self._config.max_class_share:
                break
            window, drawn = draw()
        return window, drawn

    def _padded(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        height, width = mask.shape
        if (height, width) == self._size:
            return image, mask
        whole_image, whole_mask = (
            self._fill.repeat(1, *self._size),
            torch.full(self._size, IGNORED, dtype=torch.uint8),
        )
        whole_image[:, :height, :width], whole_mask[:height, :width] = image, mask
        return whole_image, whole_mask


def resize_for_evaluation(image: Tensor, config: AugmentConfig) -> Tensor:
    """uint8 [3, H, W], whole, with config.short_side as its shorter side. Raises SampleError where that would
    fill the memory."""
    scale = _stored_scale(image.shape[1:], config)
    height, width = (max(1, round(side * scale)) for side in image.shape[1:])
    if height * width > MAX_PIXELS:
        raise SampleError(
            f"image would have {height}x{width} pixels at augment.short_side={config.short_side}; the "
            f"limit is {MAX_PIXELS}"
        )
    interpolation = F.InterpolationMode(config.preprocessing.interpolation)
    return F.resize(image, [height, width], interpolation=interpolation, antialias=config.antialias)


def _stored_scale(shape: torch.Size, config: AugmentConfig) -> float:
    """From the stored pixels to those of short_side."""
    return config.short_side / min(shape) if config.short_side else 1.0


def _largest_share(mask: Tensor) -> float:
    """Of the labelled pixels, those of the most frequent class; 1 where no pixel is labelled."""
    counts = label_counts(mask.numpy())[:IGNORED]
    return counts.max() / counts.sum() if counts.any() else 1.0


def _factors() -> Any:
    """Each with an even chance, by factors."""
    ranges = {
        "brightness": (0.875, 1.125),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-0.1, 0.1),
    }
    return v2.Compose(
        [v2.RandomApply([v2.ColorJitter(**{name: limits})], p=0.5) for name, limits in ranges.items()]
    )
