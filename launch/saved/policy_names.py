"""The names of policies in commands: NAME, or NAME_untrained; and of which kind a policy is."""

import inspect
from typing import Any

from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES

UNTRAINED = "_untrained"
"""`NAME_untrained` is policy NAME with an embedding, or whatever it learns, as it was drawn: a control that
separates the effect of learning from that of architecture."""
UNMERGED, CONTROL, FREE, TRAINED = KINDS = ("unmerged", "control", "training-free", "trained")
"""The kinds of policies, in the order of a table."""


def read_policy(policy: str) -> tuple[str, bool, bool]:
    """NAME, whether it is untrained, and whether NAME has parts that learn. Raises ConfigError for an unknown
    policy, and for `NAME_untrained` where NAME learns nothing."""
    name, untrained = policy.removesuffix(UNTRAINED), policy.endswith(UNTRAINED)
    learned = POLICIES.usual(name).learned
    if untrained and not learned:
        raise ConfigError(f"policy '{name}' has no embedding, so there is no '{policy}'; give '{name}'")
    return name, untrained, learned


def kind_of(policy: str) -> str:
    """One of KINDS. Raises ConfigError, see `read_policy`."""
    name, untrained, learned = read_policy(policy)
    usual = POLICIES.usual(name)
    if not usual.merges:
        return UNMERGED
    if untrained or usual.control:
        return CONTROL
    return TRAINED if learned else FREE


def all_policies() -> list[str]:
    """Every policy that merges, and the untrained one of each that learns, in the order of KINDS."""
    names = [name for name in POLICIES.names() if POLICIES.usual(name).merges]
    untrained = [name + UNTRAINED for name in names if POLICIES.usual(name).learned]
    return sorted([*names, *untrained], key=lambda policy: KINDS.index(kind_of(policy)))


def seed_options(policy: str, seed: int | None) -> dict[str, Any]:
    """The option `seed` of a policy that draws by one; empty for others, and without a seed."""
    name = read_policy(policy)[0]
    draws = "seed" in inspect.signature(POLICIES.get(name)).parameters
    return {} if seed is None or not draws else {"seed": seed}


def is_drawn(policy: str) -> bool:
    """Whether a seed decides what the policy merges. Of what starts alike under every seed none does."""
    name, untrained, _ = read_policy(policy)
    return (untrained and not POLICIES.usual(name).starts_alike) or bool(seed_options(policy, 0))
