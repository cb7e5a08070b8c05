"""Sections of a task's config: its head, data and reduction. Standard library only. Import them from
`schema.py`."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.config.augment_schema import AugmentConfig
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
MAX_FRAMES = 1024
"""Most frames of a clip."""
MAX_STRIDE = 1 << 12
MAX_CLIPS = 64
"""Most clips of a video in evaluation."""
MAX_PREFETCH = 64
"""Most batches that a worker has ready. These limits refuse configs, perhaps a stranger's, that ask for more
than any machine has."""


def are_pixels(size: ImgSize) -> bool:
    return all(1 <= pixels <= MAX_PIXELS for pixels in height_width(size))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A task's samples: where they are, and how they become batches."""

    schema: str = ""
    """Name in the dataset registry; it decides on the members of a sample and their decoding. Empty: that of
    the task's type."""
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
    start_workers: Literal["auto", "fork", "forkserver", "spawn"] = "auto"
    """How worker processes start: as copies of this one, of a server that holds nothing else, or anew. auto:
    `fork`, and `forkserver` where this process uses CUDA."""
    decode: Literal["worker", "scaled", "cuda"] = "worker"
    """How JPEGs of training are decoded, cropped and flipped, by the same draws: `worker`; `scaled`, by the
    worker to a half, a quarter or an eighth of the size where the window is so much larger than its image; or
    `cuda`, by the GPU that trains (nvJPEG). Evaluation and other images decode as by `worker`."""
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
    label_field: str = "labels"
    """Several classes of an image: the field of `json` that holds the list of them."""
    tokenizer: dict[str, Any] | None = None
    """Captions: the name (`type`) and options of the tokenizer, for instance dict(type="clip")."""
    frames: int | None = None
    """Clips: frames of one; None: as many as the backbone reads."""
    stride: int | None = None
    """Clips: a stretch of every so many frames of the video. None: one of each of as many equal parts."""
    eval_clips: int = 1
    """Clips: of each video in evaluation, whose scores are averaged."""
    eval_crops: Literal[1, 3] = 1
    """Clips: of each in evaluation: that of the middle, or three along the longer side; averaged too."""

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
        for name, most in {"frames": MAX_FRAMES, "stride": MAX_STRIDE, "eval_clips": MAX_CLIPS}.items():
            value = getattr(self, name)
            fits = value is None or 1 <= value <= most
            require(fits, f"data.{name} is {value}; give 1 to {most}")
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
        self._check_decode()
        self._check_augment()

    def _check_augment(self) -> None:
        """What depends on the size of an image."""
        pad = self.augment.pad
        if (given := self.augment.cutmix_minmax) is not None and self.img_size is not None:
            smallest = min(self.size)
            require(
                int(smallest * given[0]) < int(smallest * given[1]),
                f"data.augment.cutmix_minmax is {given}, of {smallest} pixels the same number; give a wider "
                "range",
            )
        fits = pad == 0 or self.img_size is None or pad < min(self.size)
        require(fits, f"data.augment.pad is {pad}; give less than data.img_size, {self.img_size}")

    def _check_decode(self) -> None:
        augment, so = self.augment, f"data.decode is '{self.decode}', so workers have no whole pictures"
        require(
            augment.pad == 0 or self.decode == "worker",
            f"{so} for data.augment.pad; leave pad out, or give data.decode='worker'",
        )
        colours = {name: getattr(augment, name) for name in ("rand_augment", "color_jitter", "grayscale")}
        changed = ", ".join(f"data.augment.{name}" for name, value in colours.items() if value)
        require(
            augment.on_device or not changed or self.decode != "cuda",
            f"{so} for {changed}; give data.augment.on_device=True, or data.decode='worker'",
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the crop in pixels: img_size, and 224 without one, for data without a model."""
        return height_width(224 if self.img_size is None else self.img_size)

    @property
    def num_frames(self) -> int:
        """Frames of a clip: `frames`, and 16 without it, for data without a model."""
        return 16 if self.frames is None else self.frames


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
        if not self.data.schema:
            object.__setattr__(self, "data", replace(self.data, schema=self.type))
        agree = "tokenizer" not in self.head or self.head["tokenizer"] == self.data.tokenizer
        require(
            agree,
            "head.tokenizer is not data.tokenizer: the task would misread its captions; give both the "
            "same dict",
        )
