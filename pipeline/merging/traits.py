"""What a policy may ask of a model: a model that lacks it is refused by name, before any forward pass."""

from collections.abc import Collection

from pipeline.errors import ConfigError
from pipeline.merging.policy import POLICIES, TRAITS, MergePolicy

VIRTUAL = "virtual_unmerging"
"""The rule of rotary positions under which each patch attends for itself."""


def traits_of(
    *,
    class_token: bool,
    one_grid: bool = True,
    rotary: str | None = None,
    times: int | None = None,
    **more: bool,
) -> frozenset[str]:
    """What a model has, by names in TRAITS. one_grid: whether all images of a batch have one grid, without
    padding. rotary: how its rotary positions merge; None: it has none. times: tubelets of a clip in time;
    None of images. more: traits that others declared."""
    has = {
        "class_token": class_token,
        "one_grid": one_grid,
        "added_positions": rotary is None,
        "merged_attention": rotary != VIRTUAL,
        "plane": times is None,
        "clips": times is not None and times > 1,
    }
    return frozenset(name for name, value in (has | more).items() if value)


def check_serves(policy: MergePolicy, has: Collection[str], model: str) -> None:
    """Raises ConfigError where the policy requires what a model has not, with the policies that can merge it.

    has: see `traits_of`. model: its name, for the message.
    """
    if not (lacking := sorted(policy.requires - set(has))):
        return
    name, wanted = policy.name or type(policy).__name__, " and ".join(TRAITS[trait] for trait in lacking)
    raise ConfigError(
        f"merge policy '{name}' cannot serve {model}: it needs {wanted}; give "
        f"such a model, or one of the policies that can merge this one ({', '.join(serving(has))})"
    )


def refuse_merging(policy: MergePolicy, model: str, why: str) -> None:
    """Raises ConfigError for a policy that merges, on a model whose tokens none can merge. why: as
    `Backbone.never_merges` says it."""
    if policy.merges:
        raise ConfigError(
            f"merge policy '{policy.name or type(policy).__name__}' cannot serve {model}, and neither can "
            f"any other: {why}; give policy 'none', or one of timm's ViTs (docs/models.md)"
        )


def serving(has: Collection[str]) -> list[str]:
    """The registered policies that can merge a model with these traits, as they come."""
    names = []
    for name in POLICIES.names():
        try:
            policy = POLICIES.build(name)
        except ConfigError:  # somebody's own, which needs options
            continue
        if policy.merges and policy.requires <= set(has):
            names.append(name)
    return names


def check_shared(policy: MergePolicy, embedding: str) -> None:
    """Raises ConfigError where tasks would have their own of what a policy learns for all: thresholds, or a
    reducer. embedding: one of the forms of a metric embedding."""
    alone = policy.masks or (policy.learned and not policy.embeds)
    if alone and embedding != "shared":
        name = policy.name or type(policy).__name__
        what = "one threshold in a block" if policy.masks else "one reducer"
        raise ConfigError(
            f"policy '{name}' has {what} for all tasks; merging.embedding is '{embedding}', give 'shared'"
        )
