"""A model of a library in which tokens merge. B batch, N patches + prefix, C channels.

Its class is a subclass of its own class. Nothing of a forward pass is kept on it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor, nn

from pipeline.backbone.become import become_merging, become_plain, library_of
from pipeline.backbone.block import MergingBlock
from pipeline.backbone.classes import Host, as_class, bases_of, class_of
from pipeline.backbone.key_start import start_embeddings
from pipeline.backbone.metric import EmbeddingSpec
from pipeline.backbone.reducing import add_reducer
from pipeline.backbone.rotary import Rotary, RotaryRule
from pipeline.backbone.run_blocks import Pass, attends_by_size, check_proportional_attention, encode
from pipeline.errors import ConfigError
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import ReductionSpec, resolve_schedule
from pipeline.merging.traits import traits_of
from pipeline.merging.unmerge import UNMERGES, start_unmerge
from pipeline.token_state import BackboneOutput, TokenState


@dataclass(frozen=True)
class Merging:
    """How a patched model merges. learns: whether passes in training mode merge by the policy's
    differentiable merge. unmerge: how features of several blocks get their full grid back. Raises
    ConfigError."""

    policy: MergePolicy
    reduction: ReductionSpec
    proportional_attention: str = "always"
    rotary: RotaryRule = field(default_factory=RotaryRule)
    learns: bool = False
    unmerge: str = "residual"

    def __post_init__(self) -> None:
        check_proportional_attention(self.proportional_attention)
        if self.unmerge not in UNMERGES:
            raise ConfigError(f"unmerge is '{self.unmerge}'; give one of {', '.join(UNMERGES)}")


@dataclass(frozen=True)
class Embedded:
    """The input of the blocks."""

    state: TokenState
    rotary: Rotary | None = None


class MergingModel(Host):
    """What a host says of its models, and what it gets. A host is a subclass of this; `patch` makes a class
    of it and the model's own."""

    WAY_OUT = ""
    """What a user can do about a model that is refused, as the end of a sentence."""

    CLASS_TOKEN = True
    """Whether the first token is a class token."""
    ONE_GRID = True
    """Whether all images of a batch have one grid, without padding."""
    ROTARY: str | None = None
    """Where the model has its rotary positions; None: nowhere."""

    merging: Merging

    @classmethod
    def refuses(cls, model: nn.Module) -> str | None:
        """Why merging would be wrong in this model, but for its blocks; None where it would not."""
        return None

    @classmethod
    def blocks_of(cls, model: nn.Module) -> Sequence[nn.Module]:
        """The blocks of a model, in order."""
        raise NotImplementedError

    @classmethod
    def traits(cls, model: nn.Module, rule: RotaryRule) -> frozenset[str]:
        """What a model has, by names in TRAITS, where its rotary positions would merge by this rule."""
        rotary = cls.ROTARY is not None and getattr(model, cls.ROTARY, None) is not None
        return traits_of(
            class_token=cls.CLASS_TOKEN, one_grid=cls.ONE_GRID, rotary=rule.name if rotary else None
        )

    def embedded(self, *inputs: Any) -> Embedded:
        """The state before the first block, for what the model's own forward takes."""
        raise NotImplementedError

    @property
    def last_norm(self) -> Callable[[Tensor], Tensor]:
        """The norm behind the last block."""
        raise NotImplementedError

    @classmethod
    def become(cls, model: nn.Module, merging: Merging) -> "MergingModel":
        """The model itself, which merges from now on. It is none that this host refuses. After an error it is
        as it was."""
        changed: list[MergingBlock] = []
        try:
            blocks = cls.blocks_of(model)
            for number, block in enumerate(blocks):
                depth = number / len(blocks)
                changed.append(become_merging(block, merging.policy, EmbeddingSpec(), depth))
                start_embeddings(changed[-1])
            add_reducer(changed, merging.policy)
        except BaseException:
            for block in changed:
                become_plain(block)
            raise
        patched = cast(MergingModel, as_class(model, class_of(cls, type(model))))
        patched.merging = merging
        return patched

    def restore(self) -> None:
        """The way back of `become`. Raises ConfigError, and leaves the model as it is, where something made
        another class of it or of a block."""
        _, library = bases_of(self)
        for block in self.merging_blocks:
            library_of(block)
        for block in self.merging_blocks:
            become_plain(block)
        del self.merging
        as_class(self, library)

    @property
    def checkpoints_blocks(self) -> bool:
        """Whether the backward pass recomputes the blocks."""
        return False

    @property
    def merging_blocks(self) -> Sequence[MergingBlock]:
        return self.blocks_of(self)  # pyright: ignore[reportReturnType]

    @property
    def reduction(self) -> ReductionSpec:
        """How much merges, see `ReductionSpec`. Setting raises ConfigError for a wrong one."""
        return self.merging.reduction

    @reduction.setter
    def reduction(self, reduction: ReductionSpec) -> None:
        resolve_schedule(reduction, len(self.merging_blocks), 1, 0)
        self.merging = replace(self.merging, reduction=reduction)

    def encode(self, *inputs: Any, **options: Any) -> BackboneOutput:
        """The merged states, for the inputs of `embedded`: after the last norm, and after the blocks in
        `taps` before it. options: those of `encode_embedded`."""
        return self.encode_embedded(self.embedded(*inputs), **options)

    def encode_embedded(
        self,
        embedded: Embedded,
        *,
        reduction: ReductionSpec | None = None,
        taps: Collection[int] = (),
        unmerge: str | None = None,
        relaxed: bool | None = None,
        merge_points_from: int | None = None,
    ) -> BackboneOutput:
        """As `encode`, from the input of the blocks. The options are those of `MergingViT.forward`. Raises
        ConfigError."""
        merging, policy = self.merging, self.merging.policy
        state = start_unmerge(embedded.state, unmerge)
        wanted = merging.reduction if reduction is None else reduction
        schedule = policy.schedule(wanted, len(self.merging_blocks), state.num_active, state.num_prefix)
        relaxed = merging.learns and self.training if relaxed is None else relaxed
        how = Pass(
            schedule,
            wanted if isinstance(wanted, float) else None,
            relaxed=policy.supports_relaxed and relaxed,
            proportional=attends_by_size(merging.proportional_attention, self.training),
            taps=taps,
            points_from=merge_points_from,
            checkpointing=self.checkpoints_blocks,
        )
        return encode(
            self.merging_blocks, self.last_norm, state, how, rotary=embedded.rotary, unmerge=unmerge
        )
