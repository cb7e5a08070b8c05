"""Engines, which carry out a step: `local` and `deepspeed`. Their protocol is
`pipeline.engine.protocol.Engine`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.engine.launched import world_size
from pipeline.engine.protocol import Engine
from pipeline.engine.zero_config import zero_config
from pipeline.errors import ConfigError
from pipeline.extras import require
from pipeline.model import MultiTaskModel


def check_engine(config: RunConfig) -> None:
    """Raises ConfigError where the engine of the configuration cannot carry out this run. Uses no device and
    opens no connection."""
    if config.engine.type == "deepspeed":
        require("deepspeed", "deepspeed", "give engine.type='local'")
        zero_config(config)
    elif world_size() > 1:
        raise ConfigError(
            f"engine.type is 'local', which is one process, but there are {world_size()}; give "
            "engine.type='deepspeed'"
        )


def build_engine(
    config: RunConfig, model: MultiTaskModel, parameter_groups: Sequence[Mapping[str, Any]]
) -> Engine:
    """The engine of the configuration; the model moves to its device. Raises ConfigError where it cannot
    carry out this run."""
    check_engine(config)
    if config.engine.type == "local":
        from pipeline.engine.local import LocalEngine

        return LocalEngine(config, model, parameter_groups)
    from pipeline.engine.zero import ZeroEngine

    return ZeroEngine(config, model, parameter_groups)
