"""Policies of tests."""

from pipeline.errors import ConfigError
from pipeline.merging.policies.tome import ToMe


class Refusing(ToMe):
    """Refuses every model at its first merge, as a policy does that lacks what it needs there."""

    REASON = "there is no class token here; give a model with one"

    def choose(self, evidence, state, r, *, relaxed):
        raise ConfigError(self.REASON)


class Asking(ToMe):
    """Has no usual options."""

    def __init__(self, *, share: float):
        super().__init__()
        self.share = share
