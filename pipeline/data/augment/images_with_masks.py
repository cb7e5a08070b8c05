"""Random changes that an image and its mask undergo together, and the fixed way of evaluation images.

Draws come from the global CPU generators, as in images.py. The window is cut out of the stored image and
then resized, which is the resized image's window up to rounding, and does not pay for what lies outside of
it. The order is MMSegmentation's: resize, crop, flip, colours, padding. Masks are resized by their pixels'
centres, where OpenCV takes corners: half a stored pixel, by which MMSegmentation's masks lie off their
images.
"""

import random

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.augment.images import Transform
from pipeline.data.augment.photometric import distort
from pipeline.data.members.decode import MAX_PIXELS
from pipeline.data.members.masks import IGNORED, label_counts
from pipeline.errors import SampleError
from pipeline.framing import as_stored

Window = tuple[int, int, int, int]
"""top, left, height, width in the stored image."""
REDRAWS = 10
NEAREST = F.InterpolationMode.NEAREST_EXACT
"""Takes the pixels' centres, as the interpolations of images do; NEAREST would shift the mask."""


class JointCrop:
    """Resizes, crops, flips and recolours an image and its mask at random: uint8 [3, H, W] and [H, W] become
    [3, *img_size] and [*img_size].

    An image that is smaller than the crop is padded at the right and below: with the mean colour, its mask
    with 255.
    """

    def __init__(self, config: DataConfig):
        self._config, self._size = config.augment, config.size
        self._interpolation = F.InterpolationMode(config.augment.preprocessing.interpolation)
        self._recolour = _recolouring(config.augment)
        self._fill = torch.tensor(
            [round(255 * channel) for channel in config.augment.preprocessing.mean], dtype=torch.uint8
        ).view(3, 1, 1)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        window, mask = self._draw(mask)
        image = F.resize(
            as_stored(F.crop(image, *window)),
            size=list(mask.shape),
            interpolation=self._interpolation,
            antialias=self._config.antialias,
        )
        if random.random() < (0.5 if self._config.hflip is None else self._config.hflip):
            image, mask = image.flip(-1), mask.flip(-1)
        if self._recolour is not None:
            image = self._recolour(image)
        return self._padded(image, mask)

    def _draw(self, mask: Tensor) -> tuple[Window, Tensor]:
        """A window, and the mask in it, resized. Draws again while one class fills too much of it, at most
        REDRAWS times."""
        scale = random.uniform(*self._config.resize_range) * _stored_scale(mask.shape, self._config)
        height, width = (
            min(side, max(1, round(crop / scale))) for side, crop in zip(mask.shape, self._size, strict=True)
        )
        target = [
            min(crop, max(1, round(side * scale)))
            for side, crop in zip((height, width), self._size, strict=True)
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
        padded_image = self._fill.repeat(1, *self._size)
        padded_mask = torch.full(self._size, IGNORED, dtype=torch.uint8)
        padded_image[:, :height, :width], padded_mask[:height, :width] = image, mask
        return padded_image, padded_mask


def resize_for_evaluation(image: Tensor, config: AugmentConfig) -> Tensor:
    """The whole image, uint8 [3, H, W], resized to config.short_side as its shorter side. Raises SampleError
    where that would fill the memory."""
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
    """The factor that resizes a stored image to short_side; 1 where that is None."""
    return config.short_side / min(shape) if config.short_side else 1.0


def _largest_share(mask: Tensor) -> float:
    """The part of the labelled pixels that the most frequent class has; 1 where no pixel is labelled."""
    counts = label_counts(mask.numpy())[:IGNORED]
    return counts.max() / counts.sum() if counts.any() else 1.0


def _recolouring(config: AugmentConfig) -> Transform | None:
    """The change of colours that `photometric` names: MMSegmentation's, or factors, each with an even chance;
    None where it is off."""
    if config.photometric == "mmseg":
        return distort
    if not config.photometric:
        return None
    ranges = {
        "brightness": (0.875, 1.125),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-0.1, 0.1),
    }
    return v2.Compose(
        [v2.RandomApply([v2.ColorJitter(**{name: limits})], p=0.5) for name, limits in ranges.items()]
    )
