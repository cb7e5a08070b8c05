"""Checkpoints of the stand-in model, saved as a run saves them, and checkpoints that say something else than
was saved."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from standin import StandinModel, standin_config

from pipeline.engine import build_engine
from pipeline.interfaces import Progress
from pipeline.parts import set_trainable
from pipeline.train import checkpoint
from pipeline.train.groups import parameter_groups
from pipeline.train.saving import Saver

BATCH = {"a": 8}


def make_engine(config=None):
    config = config or standin_config()
    model = StandinModel()
    set_trainable(model, config.train.mode)
    return build_engine(config, model, parameter_groups(model, config))


def save(
    engine,
    root: Path,
    step: int,
    config=None,
    *,
    keep: int = 10,
    best: int | None = None,
):
    """best: step of the best checkpoint so far."""
    facts = checkpoint.run_facts(config or standin_config(), engine.world_size)
    facts |= {"global_batch": BATCH, "streams": {"a": {"samples": 0}}}
    with Saver(engine, root, keep) as saver:
        average = {"ema.x": torch.full((2,), float(step))}
        saver.start(engine, Progress(step=step, best_step=best), average, facts)
        return saver.settle(wait=True)


def forge(manifest: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the facts in place and makes the hash fit again, as a stranger can: it is that of the JSON with
    sorted keys."""
    facts = json.loads(manifest.read_text())
    del facts["sha256"]
    change(facts)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    manifest.unlink()  # it may be a link to another test's
    manifest.write_text(json.dumps(facts | {"sha256": digest}))
