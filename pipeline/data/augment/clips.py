"""Changes of the frames of a clip: the same random ones for all of them, and the crops of an evaluation. T
frames."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from pipeline.config.schema import AugmentConfig, ImgSize, height_width
from pipeline.data.augment.images import eval_transform, resize_to_cover
from pipeline.errors import ConfigError
from pipeline.rng import generator_states, set_generators


def alike(change: Callable[[Any], Tensor], frames: Iterable[Any]) -> Tensor:
    """uint8 [T, 3, H, W]: each frame changed by the same draws from the global CPU generators, which are then
    where one image leaves them. What is drawn may depend on the size of a frame, and not on its pixels."""
    start, changed = generator_states(), []
    for frame in frames:
        set_generators(start)
        changed.append(change(frame))
    return torch.stack(changed)


def eval_crops(config: AugmentConfig, img_size: ImgSize, crops: int) -> Callable[[Tensor], Tensor]:
    """uint8 [3, H, W] -> uint8 [crops, 3, *img_size]. One crop is that of `eval_transform`. Several lie side
    by side on the longer side of the picture, whose shorter one just covers the crop, from end to end. Raises
    ConfigError for several where the whole picture is squashed."""
    if crops == 1:
        transform = eval_transform(config, img_size)
        return lambda frame: transform(frame)[None]
    wanted, (height, width) = config.preprocessing, height_width(img_size)
    if wanted.crop_mode == "squash":
        raise ConfigError(
            f"data.eval_crops is {crops}, and with data.augment.crop_mode 'squash' each would be the whole "
            "picture; give 1"
        )
    mode = F.InterpolationMode(wanted.interpolation)

    def cut(frame: Tensor) -> Tensor:
        picture = resize_to_cover(frame, (height, width), mode)
        down, across = picture.shape[-2] - height, picture.shape[-1] - width
        places = [(number * down // (crops - 1), number * across // (crops - 1)) for number in range(crops)]
        return torch.stack([F.crop(picture, top, left, height, width) for top, left in places])

    return cut
