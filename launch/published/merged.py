"""A published model under several merge policies, which all share its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from launch.measure.points import LeftOut
from launch.saved.policy_names import UNTRAINED, is_drawn, read_policy, seed_options
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.macs import Counted, counted_model
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.patching.patch import patch
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import ReductionSpec, check_schedule
from pipeline.rng import preserved_generators, seed_everything
from pipeline.shared_tensors import sharing_tensors
from pipeline.token_state import TokenState


def merged_model(
    base: nn.Module,
    policy: str,
    reduction: ReductionSpec,
    *,
    seed: int,
    adapter: Adapter | None = None,
    options: Mapping[str, Any] | None = None,
) -> MergingModel:
    """The model under a policy, on its device; only its embeddings, if it has any, are new: drawn from the
    seed, or those of the adapter. Merges that are drawn are so by the seed too. options: of the policy; None:
    the adapter's. Raises ConfigError and CheckpointError."""
    name = policy.removesuffix(UNTRAINED)
    with preserved_generators():
        seed_everything(seed, "embedding")
        chosen = {**seed_options(policy, seed), **(options or {})}
        found = patch(sharing_tensors(base), name, reduction, adapter=adapter, **chosen)
    assert isinstance(found, MergingModel), "patch gives one"
    return found


def counted_for(model: MergingModel, image: Tensor) -> Counted:
    """What MACs are counted of, for one image [1, 3, H, W]. Raises ConfigError where the model takes no image
    of this size, or wants more than images."""
    try:
        return counted_model(model, image)
    except (AssertionError, RuntimeError, TypeError, ValueError) as err:
        height, width = image.shape[-2:]
        reason = str(err).strip().partition("\n")[0] or type(err).__name__
        raise ConfigError(
            f"the model does not take images of {height}x{width} pixels: {reason}; leave --img-size out, or "
            "give what its patches divide"
        ) from err


def merged_models(
    base: nn.Module,
    policies: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    adapter: Adapter | None = None,
    left_out: list[LeftOut] | None = None,
) -> dict[str, list[MergingModel]]:
    """Policy -> the models under it, the unmerged one (`none`) among them: one for each seed where something
    is drawn, else one alone. adapter: of policies that learn; it gives `NAME_untrained` the options of its
    policy NAME alone.

    left_out: where a policy that the model refuses is added with the reason; None: its ConfigError is raised.
    Raises ConfigError and CheckpointError.
    """
    found: dict[str, list[MergingModel]] = {}
    for policy in dict.fromkeys(("none", *policies)):
        drawn = seeds if is_drawn(policy) else seeds[:1]
        try:
            own = adapter if check_policy(policy, adapter is not None) else None
            told = adapter.config.merging if adapter else None
            options = told.options if told and policy == told.policy + UNTRAINED else None
            found[policy] = [
                merged_model(base, policy, 0, seed=seed, adapter=own, options=options) for seed in drawn
            ]
        except ConfigError as err:
            if left_out is None or policy == "none":
                raise
            left_out.append(LeftOut(policy, None, str(err)))
    return found


def merged_as_asked(
    base: nn.Module,
    size: tuple[int, int],
    *,
    policy: str | None = None,
    reduction: ReductionSpec | None = None,
    adapter: Adapter | None = None,
) -> tuple[str, MergingModel]:
    """A policy, and the model under it, merging as asked. policy, reduction: None takes the adapter's, else
    `none` and 0. size: (height, width) of its images. Raises ConfigError, also where these have too few
    tokens for the reduction."""
    own = None if adapter is None else adapter.config.merging
    policy = policy or (own.policy if own else "none")
    taught = check_policy(policy, adapter is not None)
    model = merged_model(base, policy, 0, seed=0, adapter=adapter if taught else None)
    if reduction is None:
        model.reduction = (own.reduction or 0) if own and own.policy == policy else 0
        return policy, model
    state = embedded_state(model, size)
    check_schedule(reduction, len(model.merging_blocks), state.num_active, state.num_prefix)
    model.reduction = reduction
    return policy, model


@torch.no_grad()
def embedded_state(model: MergingModel, size: tuple[int, int]) -> TokenState:
    """What enters the first block, for one image of (height, width) pixels."""
    return model.embedded(torch.zeros(1, 3, *size, device=next(model.parameters()).device)).state


def check_policy(policy: str, has_adapter: bool) -> bool:
    """Whether the policy of a published model takes its embedding from an adapter. Raises ConfigError where
    it would, and there is none, and for `NAME_untrained` where NAME learns nothing."""
    name, untrained, learned = read_policy(policy)
    if not learned or untrained:
        return False
    if not POLICIES.build(name).embeds:
        raise ConfigError(
            f"policy '{policy}' has parts that are trained with the model, which no published model "
            f"has and no adapter holds; give a run that was trained with it, or take '{policy}{UNTRAINED}'"
        )
    if not has_adapter:
        raise ConfigError(
            f"policy '{policy}' has an embedding that is learned; give --adapter, or take "
            f"'{policy}{UNTRAINED}'"
        )
    return True
