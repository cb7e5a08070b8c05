"""`dtem train --dry-run`: what a run of any number of ranks would be, said on this machine, without a GPU."""

import json
import time
from collections.abc import Iterator

from launch.configs.describe import facts_of, lines
from launch.configs.fake import fake_step
from launch.configs.memory import estimate
from launch.configs.prepared import Prepared
from pipeline.engine.zero_config import zero_config
from pipeline.errors import ConfigError, counted


def ranks_of(world_size: int | None, nodes: int | None, gpus: int | None) -> int:
    """The number of ranks of the options; 1 without any. Raises ConfigError where they contradict."""
    if (nodes is None) != (gpus is None):
        raise ConfigError("--nodes and --gpus-per-node go together: give both, or --world-size alone")
    product = None if nodes is None or gpus is None else nodes * gpus
    if world_size is not None and product is not None and world_size != product:
        raise ConfigError(f"--world-size is {world_size}, but {nodes} nodes of {gpus} GPUs are {product}")
    return world_size or product or 1


def dry_run(prepared: Prepared, fake: int | None) -> Iterator[str]:
    """The lines of the dry run. fake: samples of a micro-batch for one step on fake data; None: no step.
    Raises PipelineError."""
    config, ranks = prepared.config, counted(prepared.resolved.world_size, "rank")
    yield f"dry run     {config.output}: {config.train.mode}, engine {config.engine.type}, {ranks}"
    yield from lines(facts_of(prepared, estimate(prepared)))
    if config.engine.type == "deepspeed":
        yield "DeepSpeed's configuration:"
        yield json.dumps(zero_config(config), indent=1)
    if fake is not None:
        start = time.perf_counter()
        figures = fake_step(prepared, fake)
        took = time.perf_counter() - start
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        yield f"fake step   micro-batches of {fake} samples of noise, {took:.1f} s here: {shown}"
