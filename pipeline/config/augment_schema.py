"""How images are changed and preprocessed. Standard library only. Import it from `schema.py`."""

from dataclasses import dataclass, fields
from typing import Literal

from pipeline.config.reduction_schema import require


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of images that a model's weights expect. The defaults are ImageNet's, for data without a
    model."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of training images, and fixed preprocessing of evaluation images."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the area of a random resized crop; (1, 1) only resizes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of its width over its height."""
    train_interpolation: Literal["bilinear", "bicubic", "random"] | None = None
    """Of training crops, and of RandAugment; `random` draws one of the two for each image. None:
    `interpolation`."""
    pad: int = 0
    """Reflect padding before a random crop at full scale (small images); excludes crop_scale."""
    hflip: float | None = None
    """Probability of a mirrored image; None: 0.5, and 0 for captions, which can name left and right."""
    vflip: float = 0.0
    """Probability of an image upside down."""
    rand_augment: str | None = None
    """RandAugment in timm's notation, for instance `rand-m9-mstd0.5-inc1`; or another of timm's policies:
    AutoAugment (`original`, `v0`), AugMix (`augmix-m3-w3`), 3-Augment (`3a`); or torchvision's TrivialAugment
    (`trivial`)."""
    color_jitter: float | tuple[float, float, float, float] = 0.0
    """One strength of brightness, contrast and saturation; or four strengths, of each of these and of hue."""
    grayscale: float = 0.0
    """Probability of a grey image."""
    on_device: bool = False
    """Compute `rand_augment`, `color_jitter` and `grayscale` on the device, for a batch at once, in place of
    the workers: from the same draws, to pixels that differ by roundings. Without any of them it changes
    nothing."""
    random_erasing: float = 0.0
    """Probability of an erased rectangle."""
    erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    """What is put there: noise of each pixel, one colour, or the mean colour."""
    erasing_count: int = 1
    """Most rectangles of an image; how many is drawn. They share the area."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    cutmix_minmax: tuple[float, float] | None = None
    """Cutmix of rectangles whose sides are drawn from this range of the image's; in place of cutmix's
    alpha."""
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    """What has draws of its own: the batch; each two images that are mixed with one another; each image."""
    mix_prob: float = 1.0
    """Probability that a batch (a pair, an image) is mixed."""
    mix_switch: float = 0.5
    """Where both are on: probability of cutmix in place of mixup."""
    mix_epochs: float | None = None
    """Epochs of the task after which no batch is mixed any more; None: all are mixed."""
    mix_labels: Literal["area", "patches", "tokens"] = "area"
    """What labels of cutmix say. `area`: the share of the pixels. `patches`: so too, and rectangles end
    between patches. `tokens`: of these, and the labels follow the tokens through the model (TL-Align)."""
    crop_pct: float | None = None
    """Evaluation of classes and captions: share of the resized side in the centre crop. For this and the next
    four, None takes the value of the backbone's weights."""
    crop_mode: Literal["center", "squash"] | None = None
    """`center`: the shorter side is resized, and the ends of the longer one are cut off. `squash`: each side
    is resized, which keeps the whole image but changes its shape."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    mean: tuple[float, float, float] | None = None
    """Mean of the pixels in [0, 1], per channel."""
    std: tuple[float, float, float] | None = None
    short_side: int | None = None
    """Masks: pixels of the shorter side before the random resizing, and in evaluation; None: as stored."""
    resize_range: tuple[float, float] = (0.5, 2.0)
    """Masks: range of the factor by which a training image is resized before the crop."""
    max_class_share: float = 0.75
    """Masks: largest share of one class in the labelled pixels of a crop; else it is drawn again, up to ten
    times. 1 is off."""
    photometric: bool | Literal["mmseg"] = False
    """Masks: random brightness, contrast, saturation and hue. `mmseg`: MMSegmentation's distortion; True:
    factors, for small images."""
    antialias: bool = True
    """Masks: whether an image is smoothed when it becomes smaller. MMSegmentation does not."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1,
            f"augment.crop_scale is {self.crop_scale}; give (low, high) with 0 < low <= high <= 1",
        )
        require(
            self.crop_pct is None or 0 < self.crop_pct <= 1,
            f"augment.crop_pct is {self.crop_pct}; give a number in (0, 1]",
        )
        least, most = self.resize_range
        require(
            0 < least <= most <= 10,
            f"augment.resize_range is {self.resize_range}; give (low, high) with 0 < low <= high <= 10",
        )
        require(
            self.short_side is None or self.short_side > 0,
            f"augment.short_side is {self.short_side}; give pixels, or None",
        )
        require(
            0 < self.max_class_share <= 1,
            f"augment.max_class_share is {self.max_class_share}; give a share in (0, 1]",
        )
        mean, std = self.mean or (0.5,), self.std or (0.5,)
        pixels = "of pixels in [0, 1]; divide what is of 0 to 255 by 255"
        require(
            0 <= min(mean) and max(mean) <= 1,
            f"augment.mean is {self.mean}; give numbers in [0, 1], {pixels}",
        )
        require(
            0 < min(std) and max(std) <= 1, f"augment.std is {self.std}; give numbers in (0, 1], {pixels}"
        )
        narrow, wide = self.crop_ratio
        require(
            0.01 <= narrow <= wide <= 100,
            f"augment.crop_ratio is {self.crop_ratio}; give (low, high) with 0.01 <= low <= high <= 100",
        )
        self._check_mixing()
        for name in ("hflip", "vflip", "grayscale", "random_erasing", "mix_prob", "mix_switch"):
            require(
                0 <= (getattr(self, name) or 0) <= 1,
                f"augment.{name} is {getattr(self, name)}; give a probability in [0, 1]",
            )
        for name in ("pad", "mixup", "cutmix"):
            require(
                getattr(self, name) >= 0, f"augment.{name} is {getattr(self, name)}; give 0 (off) or more"
            )
        require(self.erasing_count >= 1, f"augment.erasing_count is {self.erasing_count}; give 1 or more")
        require(
            self.mix_epochs is None or self.mix_epochs > 0,
            f"augment.mix_epochs is {self.mix_epochs}; give epochs, above 0, or None",
        )
        jitter = self.color_jitter if isinstance(self.color_jitter, tuple) else (self.color_jitter, 0.0)
        strengths = "0 (off) or more, or four such strengths, that of hue at most 0.5"
        require(
            min(jitter) >= 0 and jitter[-1] <= 0.5,
            f"augment.color_jitter is {self.color_jitter}; give {strengths}",
        )

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return bool(self.mixup or self.cutmix or self.cutmix_minmax)

    def _check_mixing(self) -> None:
        require(
            self.mix_labels == "area" or (self.mixup == 0 and self.mixes),
            f"augment.mix_labels is '{self.mix_labels}', which needs patches of one image each, as cutmix "
            f"alone makes them; mixup is {self.mixup} and cutmix {self.cutmix}: give mixup=0 and cutmix=1",
        )
        if self.cutmix_minmax is None:
            return
        low, high = self.cutmix_minmax
        require(
            0 <= low < high <= 1,
            f"augment.cutmix_minmax is {self.cutmix_minmax}; give (low, high) with 0 <= low < high <= 1",
        )
        require(
            self.cutmix in (0, 1),
            f"augment.cutmix is {self.cutmix} and augment.cutmix_minmax is given, which has no alpha; leave "
            "cutmix out",
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """The values given here, and ImageNet's for the rest. In a resolved run all are given."""
        given = {item.name: getattr(self, item.name) for item in fields(Preprocessing)}
        return Preprocessing(**{name: value for name, value in given.items() if value is not None})
