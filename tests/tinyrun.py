"""A real run of a few steps, as plain data."""

from pathlib import Path
from typing import Any


def tiny_plain(digits: Path, output: Path, *, augment: Any = None, data: Any = None, **sections: dict[str, Any]) -> dict[str, Any]:
    shards: dict[str, Any] = dict(schema="classification", train=str(digits), val=str(digits), img_size=32, batch_size=8, workers=0)
    shards |= dict(eval_batch_size=10, **(data or {}), augment=dict(crop_scale=[0.8, 1.0], crop_pct=1.0) | (augment or {}))
    options = dict(patch_size=8, embed_dim=24, depth=3, num_heads=2, mlp_ratio=2)
    defaults: dict[str, dict[str, Any]] = dict(
        backbone=dict(name="vit_tiny_patch16_224", img_size=32, options=options, drop_path=0.1),
        merging=dict(policy="dtem", reduction=2),
        train=dict(mode="joint", steps=6, log_every=2),
        optim=dict(lr=1e-3, ema_decay=0.9, warmup_steps=2),
        engine=dict(type="local", precision="fp32"),
    )
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    task = dict(type="classification", head=dict(num_classes=10, label_smoothing=0.1), data=shards)
    return dict(**merged, tasks=dict(digits=task), output=str(output))
