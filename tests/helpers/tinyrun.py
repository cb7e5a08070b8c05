"""Real runs of a few steps, as plain data."""

from pathlib import Path
from typing import Any

WORDS = (
    "a big zero one two three four five six seven eight nine and to the left right of above below "
    "with it digits photo".split()
)
TOKENIZER: dict[str, Any] = dict(type="words", words=WORDS, context_length=20)
TOWER = dict(width=16, heads=2, layers=1)
CAPTIONER: dict[str, Any] = dict(
    route="direct", model=dict(embed_dim=16, text_cfg=TOWER, multimodal_cfg=TOWER), tokenizer=TOKENIZER
)
CAPTIONER |= dict(generation=dict(max_length=6, min_length=6))
SEGMENTER = dict(
    num_classes=11,
    decode_head=dict(type="FCNHead", channels=8, num_convs=1, kernel_size=1, concat_input=False),
)
CONTINUOUS: dict[str, Any] = dict(
    policy="dtem", reduction=[0, 2, 0], options=dict(relaxation="soft", candidates=8)
)
"""A relaxed merge in which nothing is chosen: each of the 8 sources gives to all 8 destinations, and what
orders the tokens is not asked again. So two runs that differ in rounding stay equal but for rounding, on any
machine."""


def tiny_plain(
    digits: Path, output: Path, *, augment: Any = None, data: Any = None, **sections: dict[str, Any]
) -> dict[str, Any]:
    shards = _shards(digits, batch_size=8, eval_batch_size=10)
    shards |= dict(
        schema="classification",
        **(data or {}),
        augment=dict(crop_scale=[0.8, 1.0], crop_pct=1.0) | (augment or {}),
    )
    task = dict(type="classification", head=dict(num_classes=10, label_smoothing=0.1), data=shards)
    return dict(**_sections(sections, ema_decay=0.9), tasks=dict(digits=task), output=str(output))


def tiny_clips_plain(
    moving_digits: Path, output: Path, *, augment: Any = None, data: Any = None, **sections: dict[str, Any]
) -> dict[str, Any]:
    """The run of `tiny_plain` on clips of 8 frames."""
    made = tiny_plain(moving_digits, output, augment=augment, data=data, **sections)
    task = made["tasks"]["digits"]
    task |= dict(type="video_classification", head=dict(num_classes=9))
    task["data"] |= dict(schema="video_classification")
    made["backbone"] |= dict(frames=8)
    return made


def two_clip_tasks_plain(
    moving_digits: Path, output: Path, *, batch_size: int, **sections: dict[str, Any]
) -> dict[str, Any]:
    """Two tasks of clips of 4 frames: `digits` of stretches, which is evaluated on two of each video, and
    `parts` of a frame of each part. No average of the weights, and no drop path."""
    data: dict[str, Any] = dict(batch_size=batch_size, stride=1, eval_clips=2)
    sections = dict(optim=dict(ema_decay=0.0), backbone=dict(drop_path=0.0, frames=4)) | sections
    made = tiny_clips_plain(moving_digits, output, data=data, **sections)
    made["backbone"] |= dict(frames=4)
    task = made["tasks"]["digits"]
    parts = task["data"] | dict(stride=None, eval_clips=1)
    return made | dict(tasks=made["tasks"] | dict(parts=task | dict(data=parts)))


def tiny_tasks_plain(digits: Path, output: Path, **sections: Any) -> dict[str, Any]:
    """Three tasks over one folder of shards: `digits` (classification), `captions` and `masks`, in
    micro-batches of 8, 4 and 4.

    No average of the weights. `tasks={"masks": {"weight": 2.0}}` replaces fields of a task, every other
    section those of its own.
    """
    data = {
        "digits": _shards(digits, batch_size=8)
        | dict(schema="classification", augment=dict(crop_scale=[0.8, 1.0], crop_pct=1.0)),
        "captions": _shards(digits, batch_size=4)
        | dict(schema="captioning", augment=dict(crop_pct=1.0), tokenizer=TOKENIZER),
        "masks": _shards(digits, batch_size=4)
        | dict(schema="segmentation", augment=dict(max_class_share=1.0)),
    }
    heads: dict[str, tuple[str, dict[str, Any]]] = {
        "digits": ("classification", dict(num_classes=10, label_smoothing=0.1)),
        "captions": ("captioning", CAPTIONER),
        "masks": ("segmentation", SEGMENTER),
    }
    changes = sections.pop("tasks", {})
    tasks = {
        name: dict(type=kind, head=head, data=data[name]) | changes.get(name, {})
        for name, (kind, head) in heads.items()
    }
    return dict(**_sections(sections, ema_decay=0.0), tasks=tasks, output=str(output))


def _shards(folder: Path, *, batch_size: int, eval_batch_size: int = 5) -> dict[str, Any]:
    shards: dict[str, Any] = dict(train=str(folder), val=str(folder), img_size=32, workers=0)
    return shards | dict(batch_size=batch_size, eval_batch_size=eval_batch_size)


def _sections(sections: dict[str, dict[str, Any]], ema_decay: float) -> dict[str, Any]:
    options = dict(patch_size=8, embed_dim=24, depth=3, num_heads=2, mlp_ratio=2)
    defaults: dict[str, dict[str, Any]] = dict(
        backbone=dict(name="vit_tiny_patch16_224", img_size=32, options=options, drop_path=0.1),
        merging=dict(policy="dtem", reduction=2),
        train=dict(mode="joint", steps=6, log_every=2),
        optim=dict(lr=1e-3, ema_decay=ema_decay, warmup_steps=2),
        engine=dict(type="local", precision="fp32"),
    )
    return {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
