"""Checks of policies that mask patches by thresholds, of the objective that teaches these, and of what tasks
cannot have of their own."""

from collections.abc import Iterator

from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.traits import check_shared
from pipeline.parts import METRIC, TRAINED


def masking_mistakes(config: RunConfig) -> Iterator[str]:
    """Yields a sentence for each mistake, with the way out. An unknown policy is told elsewhere."""
    policy, objective, mode = config.merging.policy, config.objective.type, config.train.mode
    if policy not in POLICIES.names():
        return
    masking = [name for name in POLICIES.names() if POLICIES.usual(name).masks]
    if objective == "budget" and METRIC not in TRAINED[mode]:
        modes = " or ".join(f"'{name}'" for name, kinds in TRAINED.items() if METRIC in kinds)
        yield (
            "objective.type is 'budget', which teaches the thresholds of a policy that masks; train.mode is "
            f"'{mode}', give {modes}"
        )
    if objective == "budget" and policy not in masking:
        yield (
            f"objective.type is 'budget', and policy '{policy}' has no thresholds to learn; give "
            f"merging.policy={' or '.join(map(repr, masking))}, or another objective"
        )
    if policy in masking and objective == "merge_cost":
        yield (
            f"objective.type is 'merge_cost', which prices pairs by an embedding, and policy '{policy}' has "
            "none; give objective.type='budget'"
        )
    try:
        check_shared(POLICIES.usual(policy), config.merging.embedding)
    except ConfigError as err:
        yield f"merging: {err}"
