"""The base class of policies, which decide which tokens merge, and `merge`, which carries the decision
out."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.check import check_assignment
from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import Split
from pipeline.merging.partitions import OF_THE_GRID, PARITY
from pipeline.merging.rows import without_autocast
from pipeline.merging.schedule import ReductionSpec, mergeable, resolve_schedule
from pipeline.merging.unmerge import carry_residual
from pipeline.registry import Registry
from pipeline.token_state import Assignment, TokenState

EVIDENCE = frozenset(
    {"tokens", "keys", "embedding", "received", "entropy"}
    | {"own_attention", "class_attention", "mean_entropy", "head_shares"}
)
"""Values of Evidence that a policy may need."""
TRAITS = {
    "class_token": "a class token in front of all other tokens",
    "one_grid": "one grid of patches for all images of a batch, without padding",
    "added_positions": "positions that are added to the tokens, not rotary ones",
    "merged_attention": "attention among merged tokens, not merging.rotary='virtual_unmerging'",
    "plane": "images, whose patches lie in a plane, not clips",
    "clips": "clips with several tubelets in time, not images",
}
"""What a policy may require of a model, and how a message says it."""


class MergePolicy:
    """Decides which tokens of a block merge. It holds options, never state.

    A subclass defines `choose`; everything else has a default. The laws in tests/laws run over every
    registered policy, and rely on its attributes.
    """

    needs: frozenset[str] = frozenset()
    """Values of Evidence that `choose` reads, by their names in EVIDENCE; the registry refuses others. With
    `embedding`, each block gets a learned embedding."""
    requires: frozenset[str] = frozenset()
    """What a model has to have, by names in TRAITS; others are refused before any forward pass."""
    merges = True
    """Whether the policy merges at all; if not, it takes any reduction and removes nothing."""
    supports_relaxed = False
    """Whether the policy has a differentiable merge for training, which keeps all tokens."""
    conserves = True
    """Whether a merge keeps the sum of sizes, and of tokens times sizes."""
    conserves_size = True
    """Whether a merge keeps the sum of sizes: nothing is dropped."""
    takes_means = True
    """Whether a token that receives others becomes a mean of them and itself, so that equal ones stay as they
    are."""
    resizes = True
    """Whether a merge changes the size of any token that stays; if not, attention need not ask for sizes."""
    carries: frozenset[str] = frozenset()
    """Names under which `start` lets tokens carry something. Nobody sees it after the last block."""
    masks = False
    """Whether a relaxed merge masks patches: each block then has a learned threshold (`Evidence.threshold`),
    and sizes of a relaxed pass are masks, 0 or 1, by which attention multiplies its weights."""
    starts_alike = False
    """Whether what it learns starts where it hardly counts what was drawn, so that no seed tells before it
    has learned."""
    control = False
    """Whether it looks at no token, so that any other policy has to beat it."""
    name = ""
    """The name in the registry that it was built by."""
    options: Mapping[str, Any] = {}
    """The options that were given with the name."""
    ahead = False
    """Whether tokens merge at the block's entry, by the attention that the block is about to compute, and
    attend by its weights, merged (`pipeline.backbone.attention.Ahead`); else they merge between attention and
    MLP. It goes with hard merges alone."""
    at_entry = False
    """Whether tokens merge at the block's entry by what they carry alone, and the block computes nothing of
    those that leave. It goes with hard merges, without evidence and on `added_positions`."""
    partition = PARITY
    """Which tokens are sources and which destinations, one of `pipeline.merging.partitions.PARTITIONS`.
    Prices of merges follow it."""
    compares_all = False
    """Whether each patch is compared with every other, and not sources with destinations."""
    starts_at_keys = False
    """Whether the learned embedding starts at the mean over heads of the keys, and not as it is drawn."""
    exact_attention = False
    """Whether a relaxed pass needs attention that rounds as the authors' release does, instead of a fused
    kernel."""
    ranks = False
    """Whether tokens leave in an order that does not depend on how many do: the sources of a hard merge, each
    with one slot, are the first of those of a larger merge. Then rates can be learned
    (`pipeline.merging.learned_rate`)."""
    prunes_first = False
    """Whether the first tokens that leave are pruned, by the option `pruned`: a rate of its own. The policy
    then has `pruned_share`, and `ranked` prunes none."""

    @property
    def embeds(self) -> bool:
        """Whether the policy compares tokens by a learned embedding, which each block gets."""
        return "embedding" in self.needs

    @property
    def learned(self) -> bool:
        """Whether the policy has anything to train."""
        return self.embeds

    def schedule(
        self, reduction: ReductionSpec, depth: int, num_tokens: int, num_prefix: int
    ) -> tuple[int, ...]:
        """r of each block, for an input of so many tokens. Raises ConfigError for a wrong reduction."""
        planned = resolve_schedule(reduction, depth, num_tokens, num_prefix)
        return planned if self.merges else (0,) * depth

    def embedding_dim(self, dim: int, head_dim: int) -> int:
        """Channels of the learned embedding, for a backbone of `dim` channels with `head_dim` a head."""
        return head_dim

    def threshold_at(self, depth: float) -> float:
        """Where the threshold of a block starts, for a policy that masks. depth: the share of the model's
        blocks that lie before it, in [0, 1)."""
        return 0.0

    def metric(self, evidence: Evidence) -> Tensor | None:
        """[B, M, F]: vectors whose cosine similarity tells which tokens are alike; None where nothing is
        compared."""
        for name in ("embedding", "keys"):
            if name in self.needs:
                return getattr(evidence, name)
        return None

    def start(self, state: TokenState) -> TokenState:
        """The state before the first block of a pass that merges, with what has to travel with its tokens,
        under the names that the policy `carries`."""
        return state

    def start_macs(self, patches: int, width: int) -> int:
        """MACs of `start` for one image. width: C."""
        return 0

    def macs(
        self, num_tokens: int, num_prefix: int, r: int, widths: Mapping[str, int], *, merged: bool
    ) -> int:
        """MACs of one image's merge beside those of its evidence. widths: channels of what of Evidence is a
        vector for each token. merged: an earlier block has merged.

        Here: the similarities of all sources and destinations, or of all patches, once by each vector that it
        needs, and before that those of all patches, where a partition compares them.
        """
        num_sources, num_destinations = Split.by_parity(num_tokens, num_prefix).counts
        every = (num_tokens - num_prefix) ** 2
        pairs = every if self.compares_all else num_sources * num_destinations
        pairs += 0 if self.partition in OF_THE_GRID else every
        return pairs * sum(widths[name] for name in self.needs & widths.keys())

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment | None:
        """Which tokens merge, so that r fewer take part afterwards; None: none.

        1 <= r <= what can be merged. relaxed: choose a differentiable merge, where the policy supports it;
        otherwise gradients are off. Autocast is off, and what the policy needs was computed under the
        precision of the pass.
        """
        raise NotImplementedError

    def ranked(self, evidence: Evidence, state: TokenState, r: int) -> Assignment:
        """The hard merge of r tokens in the order in which they leave, for a policy that `ranks`."""
        merge = self.choose(evidence, state, r, relaxed=False)
        assert merge is not None, "what ranks merges whenever it is asked to"
        return merge

    def pruned_share(self, depth: float) -> float:
        """The share of the tokens that leave a block which is pruned, for a policy that `prunes_first`.
        depth: the share of the blocks that lie before it, in [0, 1)."""
        raise NotImplementedError


class Policies(Registry[MergePolicy]):
    """The registry of policies."""

    def build(self, name: str, /, *args: object, **options: Any) -> MergePolicy:
        """The policy. Raises ConfigError also where it needs what Evidence has not, or where there is none
        yet, or requires of a model what is no trait."""
        policy = super().build(name, *args, **options)
        for verb, asked, known in (
            ("needs", policy.needs, EVIDENCE),
            ("requires", policy.requires, TRAITS.keys()),
        ):
            if wrong := set(asked) - known:
                raise ConfigError(
                    f"{self.kind} '{name}' {verb} {', '.join(map(repr, sorted(wrong)))}; there is "
                    f"{', '.join(sorted(known))}"
                )
        if policy.at_entry and policy.needs:
            raise ConfigError(
                f"{self.kind} '{name}' merges at the entry of a block, where nothing of it is known, and "
                f"needs {', '.join(sorted(policy.needs))}; leave at_entry out, or needs"
            )
        policy.name, policy.options = name, options
        return policy

    def usual(self, name: str) -> MergePolicy:
        """The policy with its usual options; where it has none of some, as its class says. It tells of a
        policy, and merges nothing. Raises ConfigError for an unknown one."""
        try:
            return self.build(name)
        except ConfigError:
            kind: Any = self.get(name)
            if not isinstance(kind, type):
                raise
            return object.__new__(kind)


POLICIES = Policies("merge policy")
"""Filled by `pipeline.merging.policies`; import it from there."""


def merge(
    policy: MergePolicy, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool = False
) -> TokenState:
    """The state after the policy merged r of its tokens, or as many as can be."""
    r = min(r, mergeable(state.num_active, state.num_prefix))
    if r <= 0 or not policy.merges:
        return state
    relaxed = relaxed and policy.supports_relaxed
    with nullcontext() if relaxed else torch.no_grad():
        for name in sorted(policy.needs):
            getattr(evidence, name)
        with without_autocast(state.tokens.device.type):
            assignment = policy.choose(evidence, state, r, relaxed=relaxed)
    if assignment is None:
        return state
    assignment = check_assignment(assignment, state, r, policy=type(policy).__name__)
    return carry_residual(state, apply(state, assignment))
