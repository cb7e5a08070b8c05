"""Shared fixtures. pytest puts this folder on sys.path, so `standin` can be imported from all tests.

The project's folder stands before it, or else tests/tasks and tests/launch would shadow the packages of the same name.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import tasks  # noqa: E402, F401 - fills the registry
from pipeline.config.load import from_plain  # noqa: E402
from pipeline.config.schema import RunConfig  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread_and_a_fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder of digit_scenes shards: 80 samples to train on, 25 to evaluate, 32x32 pixels."""
    from pipeline.data.digit_scenes import CLASSES, digit_scenes_jobs
    from pipeline.data.write import write_shards

    folder = tmp_path_factory.mktemp("digits")
    write_shards(digit_scenes_jobs(train=80, val=25, size=32, shard_size=32), folder, classes=CLASSES)
    return folder


@pytest.fixture
def tiny_run(digits, tmp_path) -> Callable[..., RunConfig]:
    """A real run of a few steps: `tiny_run(train={...}, ...)` replaces fields, by section; `augment` and `data` are the task's."""

    def make(output: Path | None = None, *, augment: Any = None, data: Any = None, **sections: dict[str, Any]) -> RunConfig:
        return from_plain(tiny_plain(digits, output or tmp_path / "run", augment=augment, data=data, **sections))

    return make


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
