"""How an optimizer step is carried out: one file per procedure, found by this list."""

from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError
from pipeline.train.steps import alternate, dividemix, plain  # noqa: F401  (registration)
from pipeline.train.steps.procedure import STEPS, Procedure


def build_procedure(config: RunConfig) -> Procedure:
    """The procedure of `step.type`, else the one that `train.mode` takes. Raises ConfigError where it cannot
    carry out that mode."""
    mode = config.train.mode
    name = config.step.type or ("alternate" if mode == "end_to_end" else "plain")
    procedure = STEPS.build(name, config.train, **config.step.options)
    if mode not in procedure.modes:
        raise ConfigError(
            f"step.type is '{name}', which carries out train.mode {' or '.join(map(repr, procedure.modes))}, "
            f"and train.mode is '{mode}'; give one of these, or leave step.type out"
        )
    if config.backbone.peers < procedure.peers:
        raise ConfigError(
            f"step.type is '{name}', which trains two networks beside each other, and backbone.peers is "
            f"{config.backbone.peers}; give backbone.peers=2"
        )
    procedure.check(config)
    return procedure
