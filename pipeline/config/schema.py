"""Sections of a run's config: strict, frozen, keyword-only. Standard library only.

A section checks its own fields; `pipeline/plan/resolve.py` checks sections against one another.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.config.augment_schema import AugmentConfig, Preprocessing
from pipeline.config.log_schema import LogConfig
from pipeline.config.optim_schema import OptimConfig
from pipeline.config.reduction_schema import ReductionConfig, TaskMergingConfig, require
from pipeline.config.task_schema import (
    MAX_FRAMES,
    MAX_PIXELS,
    DataConfig,
    ImgSize,
    TaskConfig,
    are_pixels,
    height_width,
)
from pipeline.config.train_schema import StepConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "ImgSize",
    "LogConfig",
    "OptimConfig",
    "Preprocessing",
    "ReductionConfig",
    "StepConfig",
    "TaskConfig",
    "TaskMergingConfig",
    "TrainConfig",
    "height_width",
]

MAX_SECONDS = 10**6
"""Longest timeout, in seconds."""
MAX_THREADS = 1024
"""Most threads of a process; torch crashes on many more."""


def check_frames(frames: int, tubelet: int) -> None:
    """Raises ConfigError where the frames of a clip do not make up tubelets. 1 or 0 frames are an image."""
    known = 0 <= frames <= MAX_FRAMES
    require(known, f"backbone.frames is {frames}; give 1 for images, or up to {MAX_FRAMES}")
    require(tubelet >= 1, f"backbone.tubelet is {tubelet}; give 1 or more frames")
    near = max(1, round(frames / tubelet)) * tubelet
    require(
        frames <= 1 or frames % tubelet == 0,
        f"backbone.frames is {frames}, which does not divide by backbone.tubelet {tubelet}; nearest: {near}",
    )


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The shared ViT, of images or of clips."""

    name: str
    """Name of a timm VisionTransformer or Eva, for instance `deit_small_patch16_224`, or of a LeMeViT, such
    as `lemevit_tiny` (docs/models.md)."""
    pretrained: bool = False
    """Load timm's weights of this name (downloads them)."""
    weights: str | None = None
    """A .safetensors, .pth or .npz file with the keys of timm, ours, or those of a project that load_weights
    knows; the folder of a run, or of weights; or `open_clip:MODEL@TAG`."""
    img_size: ImgSize | None = None
    """Pixels per side, or (height, width), of the position embedding; None keeps timm's."""
    frames: int = 1
    """Frames of a clip; 1 or 0: the backbone reads images."""
    tubelet: int = 2
    """Frames of a tubelet, the patch of a clip."""
    peers: int = 1
    """Networks that are trained beside each other; 2 for steps that take two."""
    drop_path: float = 0.0
    proportional_attention: Literal["always", "train", "never"] = "always"
    """When `log size` is added to the attention logits; `train` is the paper's setting for MAE."""
    grad_checkpointing: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm's class: embed_dim, depth, num_heads, patch_size, global_pool, ...; of
    LeMeViT: depths, widths, num_meta, ..."""

    def __post_init__(self) -> None:
        require(0 <= self.drop_path < 1, f"backbone.drop_path is {self.drop_path}; give a number in [0, 1)")
        are_sides = self.img_size is None or are_pixels(self.img_size)
        require(
            are_sides, f"backbone.img_size is {self.img_size}; give 1 to {MAX_PIXELS} pixels a side, or None"
        )
        check_frames(self.frames, self.tubelet)
        require(self.peers in (1, 2), f"backbone.peers is {self.peers}; give 1, or 2 networks")


@dataclass(frozen=True, kw_only=True)
class MergingConfig(ReductionConfig):
    """How tokens are merged between attention and MLP."""

    policy: str = "none"
    embedding: Literal["shared", "per_task", "adapter"] = "shared"
    """Metric embeddings: one for all tasks, one per task, or one for all with a low-rank adapter per task."""
    adapter_rank: int = 4
    """Rank of an adapter."""
    rotary: Literal["mean_rotation", "destination", "mean_coordinate", "virtual_unmerging"] = "mean_rotation"
    """Rotary position of a merged token, in backbones that have such (docs/models.md): the mean of its
    patches' rotations, the rotation of the one that the others merged into, that at the mean of their
    coordinates, or each patch at its own, for which attention stays as large as unmerged."""
    rotary_bias: bool = False
    """With `mean_rotation`: add to each key's logits what the mean loses to second order."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.adapter_rank >= 1, f"merging.adapter_rank is {self.adapter_rank}; give 1 or more")
        require(
            not self.rotary_bias or self.rotary == "mean_rotation",
            f"merging.rotary_bias goes with merging.rotary 'mean_rotation', not '{self.rotary}'",
        )


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Choice of the tasks in a step."""

    mode: Literal["all", "sampled"] = "all"
    """`all`: every step holds every task. `sampled`: every step holds one task, drawn from (seed, step)."""
    temperature: float = 1.0
    """`sampled`: a task's probability is its share to the power of 1 / temperature; above 1 makes the
    probabilities more even."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"mixing.temperature is {self.temperature}; give a number above 0")


@dataclass(frozen=True, kw_only=True)
class BalancingConfig:
    """Weights of the tasks' losses, and measurement of their gradients."""

    type: str = "fixed"
    """`fixed`: tasks.NAME.weight. `uncertainty`: learned (Kendall et al., 2018). `gradient_norm`: after
    GradNorm (Chen et al., 2018). `meltr`: by a transformer of losses (Ko et al., 2023)."""
    options: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None
    """Learning rate of the balance's own parameters; None: 0.01, of `meltr` 0.001."""
    every: int = 50
    """Steps between measurements of the tasks' gradients (norms, cosines) on shared parameters; 0: never."""

    def __post_init__(self) -> None:
        if self.lr is None:
            object.__setattr__(self, "lr", 1e-3 if self.type == "meltr" else 1e-2)
        require((self.lr or 0) > 0, f"balancing.lr is {self.lr}; give a number above 0")
        require(self.every >= 0, f"balancing.every is {self.every}; give a number of steps, or 0")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss."""

    type: str = "supervised"
    """`supervised`: the task's own loss. `distill`: agreement with an unmerged teacher. `consistency`: the
    task's own loss at two reductions, and their agreement. `budget`: the task's own loss, agreement with the
    unmasked model, and a share of its MACs. `merge_cost`: the expected cost of merges
    (docs/merge_cost.md)."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Engine, precision and threads."""

    type: Literal["local", "deepspeed", "fsdp"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: Literal["none", "model", "blocks"] = "none"
    """torch.compile of the backbone, as a whole or block by block; also in evaluation (docs/speed.md)."""
    accumulation: int = 1
    """Micro-batches per task in an optimizer step."""
    threads: int | None = None
    """CPU threads of torch per process; None leaves torch's choice."""
    start_timeout: float = 300.0
    """Longest time in seconds for all processes to come, and for a collective before the first step ends."""
    timeout: float = 100.0
    """Longest time in seconds for a micro-batch with its collectives; then the run ends, and says where each
    rank was. Waits for data, saves and scores have limits of their own."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Fields that are merged into the generated DeepSpeed configuration, which they may not contradict."""

    def __post_init__(self) -> None:
        require(self.accumulation >= 1, f"engine.accumulation is {self.accumulation}; give 1 or more")
        fits = self.threads is None or 1 <= self.threads <= MAX_THREADS
        require(fits, f"engine.threads is {self.threads}; give 1 to {MAX_THREADS}, or None")
        for name in ("start_timeout", "timeout"):
            value = getattr(self, name)
            fits = 1 <= value <= MAX_SECONDS
            require(fits, f"engine.{name} is {value}; give seconds, from 1 to {MAX_SECONDS}")


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
    mixing: MixingConfig = field(default_factory=MixingConfig)
    balancing: BalancingConfig = field(default_factory=BalancingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    step: StepConfig = field(default_factory=StepConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    folder: str | None = None
    """Folder of the relative paths in `config.places.PLACES`; None: the current one. A run notes the one in
    which it was started."""
    custom_imports: list[str] = field(default_factory=list)
    """Modules that the `.py` config of the run imported; a config that is data imports none."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; give a number from 0 to 2^63 - 1")
        require(bool(self.output), "output is empty; name a folder for the run")
        require(
            bool(self.tasks),
            "tasks is empty: give at least one, for instance "
            "tasks=dict(imagenet=dict(type='classification', ...))",
        )
