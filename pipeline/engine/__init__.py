"""Engines, which carry out a step: `local`, `deepspeed` and `fsdp`. Their protocol is
`pipeline.engine.protocol.Engine`."""

from collections.abc import Sequence
from typing import Any

from pipeline.backbone.compiled import compile_backbone
from pipeline.config.schema import RunConfig
from pipeline.engine.launched import world_size
from pipeline.engine.optimizers import check_optimizer
from pipeline.engine.protocol import Engine
from pipeline.engine.zero_config import zero_config
from pipeline.errors import ConfigError
from pipeline.extras import require
from pipeline.model import MultiTaskModel


def check_engine(config: RunConfig, ranks: int | None = None) -> None:
    """Raises ConfigError where the engine of the configuration cannot carry out this run. ranks: None are
    those that were started. Uses no device and opens no connection."""
    ranks = world_size() if ranks is None else ranks
    if config.engine.type == "deepspeed":
        require("deepspeed", "deepspeed", "give engine.type='local'")
        zero_config(config)
    elif config.engine.type == "local" and ranks > 1:
        raise ConfigError(
            f"engine.type is 'local', which is one process, but there are {ranks}; give "
            "engine.type='deepspeed'"
        )
    check_optimizer(config, divided=_divides_moments(config, ranks))
    if config.engine.type == "fsdp" and config.balancing.every and len(config.tasks) > 1:
        raise ConfigError(
            f"balancing.every is {config.balancing.every}, and engine.type='fsdp' shows no gradients of "
            "single tasks; give balancing.every=0, or engine.type='deepspeed'"
        )

    if config.balancing.type == "meltr" and divides_weights(config):
        asked = (
            "engine.type='fsdp'"
            if config.engine.type == "fsdp"
            else f"engine.zero_stage={config.engine.zero_stage}"
        )
        raise ConfigError(
            f"balancing.type is 'meltr', which compares gradients of whole parameters, and with {asked} no "
            "rank holds such; give engine.type='deepspeed' with zero_stage 0 to 2, or another balancing.type"
        )


def _divides_moments(config: RunConfig, ranks: int) -> str:
    """The settings by which a rank's optimizer has parts of parameters only; empty where it has whole
    ones."""
    engine = config.engine
    if engine.type == "fsdp" and ranks > 1:
        return "engine.type='fsdp'"
    return (
        f"engine.zero_stage={engine.zero_stage}" if engine.type == "deepspeed" and engine.zero_stage else ""
    )


def divides_weights(config: RunConfig) -> bool:
    """Whether no rank holds a whole model, so that each forward pass is a collective."""
    engine = config.engine
    return engine.type == "fsdp" or (engine.type == "deepspeed" and engine.zero_stage == 3)


def build_engine(
    config: RunConfig, model: MultiTaskModel, parameter_groups: Sequence[dict[str, Any]]
) -> Engine:
    """The engine of the configuration; the model moves to its device. Raises ConfigError where it cannot
    carry out this run."""
    check_engine(config)
    compile_backbone(model.backbone, config.engine.compile)
    if config.engine.type == "local" or (config.engine.type == "fsdp" and world_size() == 1):
        from pipeline.engine.local import LocalEngine

        return LocalEngine(config, model, parameter_groups)
    if config.engine.type == "fsdp":
        from pipeline.engine.fsdp import ShardedEngine

        return ShardedEngine(config, model, parameter_groups)
    from pipeline.engine.zero import ZeroEngine

    return ZeroEngine(config, model, parameter_groups)
