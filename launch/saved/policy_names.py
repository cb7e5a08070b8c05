"""The names of policies in commands: NAME, or NAME_untrained."""

from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES

UNTRAINED = "_untrained"
"""`NAME_untrained` is policy NAME with an embedding as it was drawn: a control that separates the effect of
learning from that of architecture."""


def read_policy(policy: str) -> tuple[str, bool, bool]:
    """NAME, whether it is untrained, and whether NAME has an embedding that learns. Raises ConfigError for an
    unknown policy, and for `NAME_untrained` where NAME learns nothing."""
    name, untrained = policy.removesuffix(UNTRAINED), policy.endswith(UNTRAINED)
    learned = POLICIES.build(name).learned
    if untrained and not learned:
        raise ConfigError(f"policy '{name}' has no embedding, so there is no '{policy}'; give '{name}'")
    return name, untrained, learned
