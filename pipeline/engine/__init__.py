"""One protocol (`pipeline.interfaces.Engine`), two ways to carry out a step."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pipeline.config.schema import RunConfig
from pipeline.engine.launched import world_size
from pipeline.errors import ConfigError
from pipeline.interfaces import Engine


def build_engine(config: RunConfig, model: nn.Module, parameter_groups: Sequence[Mapping[str, Any]]) -> Engine:
    """The engine of the configuration; the model moves to its device. Raises ConfigError where it cannot carry out this run."""
    if config.engine.type == "local":
        if world_size() > 1:
            raise ConfigError(f"engine.type is 'local', which is one process, but there are {world_size()}; give engine.type='deepspeed'")
        from pipeline.engine.local import LocalEngine

        return LocalEngine(config, model, parameter_groups)
    from pipeline.engine.zero import ZeroEngine

    return ZeroEngine(config, model, parameter_groups)
