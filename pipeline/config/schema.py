"""What a run is made of: strict, frozen, keyword-only sections. Standard library only.

A section checks what it can see alone; `resolve.py` checks what takes two sections to see.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import ConfigError

Reduction = int | float | tuple[int, float] | list[int]
"""r per block, a keep rate in (0, 1], (r, inflection), or one r for each block; a sequence of two is always (r, inflection)."""


REDUCTION_FORMS = "an integer from 0, a keep rate in (0, 1], (r, inflection) with inflection in [-1, 1], or a list of integers"


ImgSize = int | tuple[int, int]
"""Pixels: of both sides, or (height, width)."""


def height_width(size: ImgSize) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _is_reduction(value: Reduction) -> bool:
    if isinstance(value, tuple):
        return value[0] >= 0 and -1 <= value[1] <= 1
    if isinstance(value, list):
        return all(r >= 0 for r in value)
    return value >= 0 if isinstance(value, int) else 0 < value <= 1


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The shared ViT."""

    name: str
    """A timm VisionTransformer name, for instance `deit_small_patch16_224`."""
    pretrained: bool = False
    """Load timm's weights of that name (downloads)."""
    weights: str | None = None
    """A .safetensors or .pth file with timm keys, our keys or those of the authors' release; or a run's checkpoint folder."""
    img_size: ImgSize | None = None
    """Pixels per side, or (height, width), that the position embedding is made for; None keeps timm's."""
    drop_path: float = 0.0
    proportional_attention: Literal["always", "train", "never"] = "always"
    """When `log size` is added to the attention logits; `train` is the paper's setting for MAE."""
    grad_checkpointing: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm's class: embed_dim, depth, num_heads, patch_size, global_pool, ..."""

    def __post_init__(self) -> None:
        require(0 <= self.drop_path < 1, f"backbone.drop_path is {self.drop_path}; give a number in [0, 1)")
        positive = self.img_size is None or min(height_width(self.img_size)) > 0
        require(positive, f"backbone.img_size is {self.img_size}; give a number of pixels, (height, width), or None")


@dataclass(frozen=True, kw_only=True)
class MergingConfig:
    """How tokens are merged between attention and MLP."""

    policy: str = "none"
    reduction: Reduction = 0
    """Tokens removed per block: int, (r, inflection), list per block, or a keep rate in (0, 1]."""
    target_macs: float | None = None
    """Fraction of the unmerged MACs, in (0, 1); the solver finds the reduction. Excludes `reduction`."""
    target_gmacs: float | None = None
    """10^9 multiply-accumulates of one image through the backbone, which papers call GFLOPs; the solver finds the reduction."""
    within: float = 1.0
    """With a target: the share of the blocks, from the first one, that merge."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the policy."""

    def __post_init__(self) -> None:
        macs, gmacs = self.target_macs, self.target_gmacs
        require(macs is None or 0 < macs < 1, f"merging.target_macs is {macs}; give a fraction in (0, 1)")
        require(gmacs is None or gmacs > 0, f"merging.target_gmacs is {gmacs}; give a number above 0")
        require(0 < self.within <= 1, f"merging.within is {self.within}; give a share of the blocks, in (0, 1]")
        require(
            self.within == 1 or macs is not None or gmacs is not None, "merging.within goes with target_macs or target_gmacs; leave it out"
        )
        require(_is_reduction(self.reduction), f"merging.reduction is {self.reduction}; give {REDUCTION_FORMS}")
        given = [name for name in ("reduction", "target_macs", "target_gmacs") if getattr(self, name)]
        require(len(given) <= 1, f"merging.{' and merging.'.join(given)} exclude one another: give one")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of training images, and the fixed way of evaluation images."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area range of the random resized crop; (1, 1) resizes only."""
    pad: int = 0
    """Reflect padding before a random crop at full scale (small images); excludes crop_scale."""
    hflip: float = 0.5
    rand_augment: str | None = None
    """timm's notation, for instance `rand-m9-mstd0.5-inc1`."""
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    crop_pct: float = 0.875
    """Evaluation: the centre crop's share of the resized side."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    short_side: int | None = None
    """Masks: pixels of the shorter side before the random resizing, and in evaluation; None: as stored."""
    resize_range: tuple[float, float] = (0.5, 2.0)
    """Masks: range of the factor by which a training image is resized before the crop."""
    max_class_share: float = 0.75
    """Masks: a crop in which one class has more than this share of the labelled pixels is drawn again, up to ten times; 1 is off."""
    photometric: bool = False
    """Masks: random brightness, contrast, saturation and hue."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"augment.crop_scale is {self.crop_scale}; give (low, high) with 0 < low <= high <= 1")
        require(0 < self.crop_pct <= 1, f"augment.crop_pct is {self.crop_pct}; give a number in (0, 1]")
        least, most = self.resize_range
        require(0 < least <= most <= 10, f"augment.resize_range is {self.resize_range}; give (low, high) with 0 < low <= high <= 10")
        require(self.short_side is None or self.short_side > 0, f"augment.short_side is {self.short_side}; give pixels, or None")
        require(0 < self.max_class_share <= 1, f"augment.max_class_share is {self.max_class_share}; give a share in (0, 1]")
        require(min(self.std) > 0, f"augment.std is {self.std}; give numbers above 0")
        for name in ("hflip", "random_erasing"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} is {getattr(self, name)}; give a probability in [0, 1]")
        for name in ("pad", "color_jitter", "mixup", "cutmix"):
            require(getattr(self, name) >= 0, f"augment.{name} is {getattr(self, name)}; give 0 (off) or more")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where a task's samples are and how they become batches."""

    schema: str
    """Name in the dataset registry: which members a sample has and how they decode."""
    train: str | list[str] | None = None
    """Folder, brace pattern, list of tars, or a URL (https, s3, gs) of shards with a manifest."""
    val: str | list[str] | None = None
    img_size: ImgSize = 224
    """Pixels per side, or (height, width), of the crop the model sees."""
    batch_size: int = 128
    """Samples of one micro-batch on one rank."""
    eval_batch_size: int = 128
    workers: int = 4
    shuffle_shards: int = 8
    """Shards that are open at once; samples are shuffled within such a window (bounds memory and disk cache)."""
    max_bad_samples: int = 100
    """Corrupt samples in a row that stop the run."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    tokenizer: dict[str, Any] | None = None
    """Captions: the name (`type`) and options of the tokenizer, for instance dict(type="clip")."""

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "eval_batch_size": 1, "workers": 0, "shuffle_shards": 1, "max_bad_samples": 0}.items():
            require(getattr(self, name) >= least, f"data.{name} is {getattr(self, name)}; give {least} or more")
        pad, side = self.augment.pad, min(height_width(self.img_size))
        require(pad == 0 or pad < side, f"data.augment.pad is {pad}; give less than data.img_size, {self.img_size}")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: its head, its data, its share of the loss."""

    type: str
    data: DataConfig
    weight: float = 1.0
    head: dict[str, Any] = field(default_factory=dict)
    """Options of the task's class, for instance num_classes, label_smoothing."""

    def __post_init__(self) -> None:
        require(self.weight > 0, f"task weight is {self.weight}; give a number above 0, or leave the task out")
        agree = "tokenizer" not in self.head or self.head["tokenizer"] == self.data.tokenizer
        require(agree, "head.tokenizer is not data.tokenizer: the task would misread its captions; give both the same dict")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the loss is."""

    type: str = "supervised"
    """`supervised`: the task's own loss. `distill`: agreement with an unmerged teacher."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule, a closed form of the step."""

    lr: float = 1e-4
    """Learning rate of backbone and heads."""
    metric_lr: float | None = None
    """Learning rate of the metric embeddings; None: the same as lr."""
    min_lr: float = 1e-6
    warmup_steps: int = 0
    weight_decay: float = 1e-4
    """0 for biases, norms and other one-dimensional parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0
    clip_grad: float | None = 5.0
    ema_decay: float = 0.0
    """0 keeps no average."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optim.lr is {self.lr}; give a number above 0")
        require(self.metric_lr is None or self.metric_lr > 0, f"optim.metric_lr is {self.metric_lr}; give a number above 0")
        require(0 <= self.min_lr <= self.lr, f"optim.min_lr is {self.min_lr}; give a number in [0, optim.lr = {self.lr}]")
        require(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}; give 0 or more")
        require(all(0 <= beta < 1 for beta in self.betas), f"optim.betas is {self.betas}; give two numbers in [0, 1)")
        require(self.warmup_steps >= 0, f"optim.warmup_steps is {self.warmup_steps}; give 0 or more")
        require(self.clip_grad is None or self.clip_grad > 0, f"optim.clip_grad is {self.clip_grad}; give a number above 0, or None")
        require(0 < self.layer_decay <= 1, f"optim.layer_decay is {self.layer_decay}; give a number in (0, 1]")
        require(0 <= self.ema_decay < 1, f"optim.ema_decay is {self.ema_decay}; give a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained, how long, and what is written when."""

    mode: Literal["modular", "end_to_end", "joint", "backbone"] = "modular"
    """`modular`: only the metric embeddings. `end_to_end`: backbone under hard merging and embeddings under soft merging, in turn.
    `joint`: everything at once under soft merging. `backbone`: everything but the embeddings, under the inference-time merge."""
    epochs: float | None = None
    steps: int | None = None
    """Optimizer steps; give one of epochs and steps."""
    alternate_period: int = 10
    """end_to_end: every such-th step trains the embeddings, the others the backbone."""
    reduction_range: tuple[int, int] | None = None
    """Draw each step's reduction from this range (both ends included), a function of (seed, step)."""
    log_every: int = 50
    eval_every: int | None = None
    """Steps; None: at the end only."""
    save_every: int | None = None
    """Steps; None: at the end only (and on SIGTERM)."""
    keep_checkpoints: int = 2
    max_nonfinite: int = 5
    """Steps in a row whose loss is not finite on some rank, which are skipped; one more stops the run."""

    def __post_init__(self) -> None:
        require((self.epochs is None) != (self.steps is None), "give exactly one of train.epochs and train.steps")
        for name in ("epochs", "steps", "log_every", "eval_every", "save_every", "keep_checkpoints"):
            value = getattr(self, name)
            require(value is None or value > 0, f"train.{name} is {value}; give a number above 0")
        require(self.alternate_period >= 2, f"train.alternate_period is {self.alternate_period}; give 2 or more")
        low, high = self.reduction_range or (0, 0)
        require(0 <= low <= high, f"train.reduction_range is {self.reduction_range}; give (low, high) with 0 <= low <= high")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step is carried out."""

    type: Literal["local", "deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "bf16"
    accumulation: int = 1
    """Micro-batches per optimizer step."""
    threads: int | None = None
    """CPU threads of torch per process; None leaves torch's choice."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Merged into the generated DeepSpeed configuration; a field that both own must agree."""

    def __post_init__(self) -> None:
        require(self.accumulation >= 1, f"engine.accumulation is {self.accumulation}; give 1 or more")
        require(self.threads is None or self.threads >= 1, f"engine.threads is {self.threads}; give 1 or more, or None")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, from data to checkpoint."""

    backbone: BackboneConfig
    tasks: dict[str, TaskConfig]
    train: TrainConfig
    output: str
    """Folder of the run: resolved config, metrics, checkpoints."""
    seed: int = 42
    merging: MergingConfig = field(default_factory=MergingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        require(bool(self.output), "output is empty; name a folder for the run")
        require(bool(self.tasks), "tasks is empty: give at least one, for instance tasks=dict(imagenet=dict(type='classification', ...))")
