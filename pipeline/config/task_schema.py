"""Sections of a task's config: its head, data and reduction. Standard library only. Import them from
`schema.py`."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pipeline.config.reduction_schema import TaskMergingConfig, require

ImgSize = int | tuple[int, int]
"""Pixels of each side, or (height, width)."""


def height_width(size: ImgSize) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


MAX_PIXELS = 1 << 14
"""Most pixels of a side."""
MAX_BATCH = 1 << 16
MAX_WORKERS = 256
"""Most worker processes."""
MAX_WEIGHT = 1000
"""Most copies of a set in an epoch."""
MAX_WAIT = 1700.0
"""Longest wait for a batch in seconds: the other ranks wait half an hour for one that reads its data."""
MAX_PREFETCH = 64
"""Most batches that a worker has ready. These limits refuse configs, perhaps a stranger's, that ask for more
than any machine has."""


def are_pixels(size: ImgSize) -> bool:
    return all(1 <= pixels <= MAX_PIXELS for pixels in height_width(size))


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
    pad: int = 0
    """Reflect padding before a random crop at full scale (small images); excludes crop_scale."""
    hflip: float | None = None
    """Probability of a mirrored image; None: 0.5, and 0 for captions, which can name left and right."""
    rand_augment: str | None = None
    """RandAugment in timm's notation, for instance `rand-m9-mstd0.5-inc1`; or another of timm's policies:
    AutoAugment (`original`, `v0`), AugMix (`augmix-m3-w3`), 3-Augment (`3a`); or torchvision's TrivialAugment
    (`trivial`)."""
    color_jitter: float | tuple[float, float, float, float] = 0.0
    """One strength of brightness, contrast and saturation; or four strengths, of each of these and of hue."""
    random_erasing: float = 0.0
    """Probability of an erased rectangle."""
    erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    """What is put there: noise of each pixel, one colour, or the mean colour."""
    erasing_count: int = 1
    """Most rectangles of an image; how many is drawn. They share the area."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    mix_prob: float = 1.0
    """Probability that a batch is mixed."""
    mix_switch: float = 0.5
    """Where both are on: probability of cutmix in place of mixup."""
    mix_epochs: float | None = None
    """Epochs of the task after which no batch is mixed any more; None: all are mixed."""
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
        for name in ("hflip", "random_erasing", "mix_prob", "mix_switch"):
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
    def preprocessing(self) -> Preprocessing:
        """The values given here, and ImageNet's for the rest. In a resolved run all are given."""
        given = {item.name: getattr(self, item.name) for item in fields(Preprocessing)}
        return Preprocessing(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A task's samples: where they are, and how they become batches."""

    schema: str
    """Name in the dataset registry; it decides on the members of a sample and their decoding."""
    train: str | list[str] | None = None
    """Folder, brace pattern, list of tars, or a URL (https, hf, s3, gs, az) of shards with a manifest; or
    pictures in files of their own: an ImageFolder tree, or KIND:SRC with a layout (docs/data.md)."""
    train_weights: list[float] | None = None
    """Of several sets in `train` (a list, or `a::b`): how often a sample of each comes in an epoch, in the
    mean; 0.5 is every other epoch. None: once for all."""
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    """Shards of `--split test`; None: the `test` shards of the folder of `val`."""
    allow_overlap: bool = False
    """Allow evaluation on the training shards, for instance to see whether a few samples can be fitted."""
    overfit: int | None = None
    """Train on so many samples alone, the first ones, and evaluate on them, to see whether they can be
    fitted."""
    limit_val: int | None = None
    """Most samples of an evaluation, the first ones; None: all."""
    img_size: ImgSize | None = None
    """Pixels per side, or (height, width), of the crop; None: the size of the backbone's position
    embedding."""
    batch_size: int = 128
    """Samples of one micro-batch on one rank."""
    views: int = 1
    """Images that training makes of each sample, by different random draws; a micro-batch has batch_size *
    views images."""
    eval_batch_size: int = 128
    workers: int = 4
    prefetch: int = 2
    """Batches that each worker has ready or at work; they lie in shared memory."""
    shuffle_shards: int = 8
    """Shards whose samples are mixed at a time; with lanes, over all of them, and one shard of each at
    least."""
    lanes: int | None = None
    """Parts of an epoch that are read side by side. A machine reads its own ones, so give at least four times
    as many as machines, or as many. None: a power of two by the samples of a step and the number of shards, 1
    below 32 shards."""
    fetch_ahead: int = 8192
    """Samples of a rank whose remote shards are fetched before they are needed."""
    max_bad_samples: int = 100
    """Most corrupt samples in a row that a rank skips; one more stops the run."""
    max_bad_share: float = 0.001
    """Largest share of corrupt samples over all ranks; more stop the run. Ten are always allowed."""
    max_wait: float = 300.0
    """Longest wait for a batch in seconds, before the run stops; storage that fails is tried again for four
    fifths of it."""
    cache_gib: float = 32.0
    """GiB of downloaded shards that a machine keeps for all its runs; shards in use stay."""
    cache_dir: str | None = None
    """Folder of these shards, best on a local disk; None: $DTEM_CACHE, else dtem-UID in $TMPDIR or /tmp."""
    exif_rotation: bool = True
    """Turn images upright as their EXIF says, as phones mean it. timm and torchvision do not."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    caption_field: str | None = None
    """Captions: the field of `json` that holds one text, or a list of texts, as `caption` of img2dataset.
    None: the member `txt` of a sample that has one, else the list `captions` of `json`."""
    tokenizer: dict[str, Any] | None = None
    """Captions: the name (`type`) and options of the tokenizer, for instance dict(type="clip")."""

    def __post_init__(self) -> None:
        for name, least in {
            "batch_size": 1,
            "views": 1,
            "eval_batch_size": 1,
            "workers": 0,
            "prefetch": 1,
            "shuffle_shards": 1,
            "fetch_ahead": 0,
            "max_bad_samples": 0,
        }.items():
            require(
                getattr(self, name) >= least, f"data.{name} is {getattr(self, name)}; give {least} or more"
            )
        require(
            0 <= self.max_bad_share <= 1,
            f"data.max_bad_share is {self.max_bad_share}; give a share in [0, 1]",
        )
        require(
            self.lanes is None or self.lanes >= 1,
            f"data.lanes is {self.lanes}; give 1 or more, or None",
        )
        require(
            0 < self.max_wait <= MAX_WAIT,
            f"data.max_wait is {self.max_wait}; give seconds, more than 0 and at most {MAX_WAIT:.0f}, as "
            "other ranks wait as long",
        )
        for name in ("overfit", "limit_val"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name} is {value}; give 1 or more, or None")
        require(self.cache_gib > 0, f"data.cache_gib is {self.cache_gib}; give a number above 0")
        for name, most in {
            "batch_size": MAX_BATCH,
            "eval_batch_size": MAX_BATCH,
            "workers": MAX_WORKERS,
            "prefetch": MAX_PREFETCH,
        }.items():
            require(getattr(self, name) <= most, f"data.{name} is {getattr(self, name)}; give at most {most}")
        for weight in self.train_weights or []:
            require(
                0 < weight <= MAX_WEIGHT,
                f"data.train_weights holds {weight}; give numbers above 0, at most {MAX_WEIGHT}",
            )
        images = self.batch_size * self.views
        require(
            images <= MAX_BATCH,
            f"data.batch_size times data.views is {images} images; give at most {MAX_BATCH}",
        )
        are_sides = self.img_size is None or are_pixels(self.img_size)
        require(are_sides, f"data.img_size is {self.img_size}; give 1 to {MAX_PIXELS} pixels a side")
        pad = self.augment.pad
        fits = pad == 0 or self.img_size is None or pad < min(self.size)
        require(fits, f"data.augment.pad is {pad}; give less than data.img_size, {self.img_size}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the crop in pixels: img_size, and 224 without one, for data without a model."""
        return height_width(224 if self.img_size is None else self.img_size)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: its head, its data, and its part in each step."""

    type: str
    data: DataConfig
    head: dict[str, Any] = field(default_factory=dict)
    """Options of the task's class, for instance num_classes, label_smoothing."""
    weight: float = 1.0
    """Weight of the task's loss; a learned balance starts from it, or is multiplied by it."""
    share: float | None = None
    """Mixing `sampled`: frequency of the task relative to the others; None: the number of micro-batches in
    its epoch."""
    accumulation: int = 1
    """Micro-batches of this task in a step that holds it, times engine.accumulation."""
    merging: TaskMergingConfig | None = None
    """Reduction of the task; None: that of the run."""
    frozen: bool = False
    """Whether the head stays as it is: evaluated and saved with the others, without training batches."""

    def __post_init__(self) -> None:
        agree = "tokenizer" not in self.head or self.head["tokenizer"] == self.data.tokenizer
        require(
            agree,
            "head.tokenizer is not data.tokenizer: the task would misread its captions; give both the "
            "same dict",
        )
