"""A small run under `meltr`: three tasks and four losses."""

import copy
from pathlib import Path
from typing import Any

from tinyrun import tiny_tasks_plain

PERIOD = 2
BY_MELTR: dict[str, Any] = dict(type="meltr", every=0, options=dict(width=8, heads=2, period=PERIOD))
SIZES = {"digits": 4, "captions": 4, "masks": 2}
"""Task -> samples of a micro-batch over all processes."""
HALVED: dict[str, dict[str, Any]] = dict(
    digits=dict(accumulation=3, weight=0.5), captions=dict(accumulation=2), masks=dict(accumulation=2)
)


def plain_of(
    digits: Path, output: Path, *, processes: int = 1, tasks: Any = None, **sections: Any
) -> dict[str, Any]:
    """Without what is drawn by rank: dropout and drop path."""
    defaults: dict[str, Any] = dict(
        backbone=dict(drop_path=0.0),
        merging=dict(policy="none", reduction=0),
        balancing=BY_MELTR,
        train=dict(mode="backbone", steps=4, log_every=1),
        optim=dict(lr=1e-3, warmup_steps=0, weight_decay=0.05),
    )
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    plain = copy.deepcopy(tiny_tasks_plain(digits, output, tasks=HALVED | (tasks or {}), **merged))
    plain["tasks"]["masks"]["head"]["decode_head"]["dropout_ratio"] = 0.0
    for name, task in plain["tasks"].items():
        task["data"] |= dict(val=None, batch_size=SIZES[name] // processes)
    return plain
