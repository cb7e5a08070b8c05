"""What the vision models of Hugging Face transformers share, with merging: their outputs are those of all
positions. B batch, N patches + prefix, C channels, L blocks.

A model of transformers has a class of the same name when it merges: transformers reads the names of classes,
for instance what a pipeline supports, and what config.json says.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.patching.passed_by import own_calls
from pipeline.errors import ConfigError
from pipeline.extras import command
from pipeline.merging.unmerge import harden, unmerge_state, unmerge_tokens
from pipeline.token_state import TokenState


class MergingTower(MergingModel):
    """A model of embeddings, layers and a pooler. Norm and pooler read the unmerged positions, so they count
    a token by its size."""

    LAYERS: str
    """Where the layers are."""

    @classmethod
    def name_for(cls, library: type[nn.Module]) -> str:
        return library.__name__

    @classmethod
    def refuses(cls, model: nn.Module) -> str | None:
        if getattr(model.config, "output_attentions", False):
            return f"config.output_attentions is set, and {NO_ATTENTIONS}"
        return own_calls(model, cls.LAYERS)

    @classmethod
    def blocks_of(cls, model: nn.Module) -> Sequence[nn.Module]:
        try:
            return list(model.get_submodule(cls.LAYERS).children())
        except AttributeError as err:
            raise ConfigError(
                f"{type(model).__name__} of transformers {transformers.__version__} has its layers "
                f"elsewhere; run {command('hf')} for a version that merging knows"
            ) from err

    @property
    def checkpoints_blocks(self) -> bool:
        return self.training and any(
            getattr(block, "gradient_checkpointing", False) for block in self.merging_blocks
        )

    def pooled(self, tokens: Tensor, *inputs: Any) -> Tensor | None:
        """The pooler's output [B, C] for `last_hidden_state` [B, N, C] and the inputs of `embedded`."""
        raise NotImplementedError

    def outputs(self, options: Mapping[str, Any], *inputs: Any) -> BaseModelOutputWithPooling:
        """What the model's forward returns for the inputs of `embedded` and its other options. Raises
        ConfigError where the attention between positions is asked for, or masked."""
        if options.get("output_attentions", getattr(self.config, "output_attentions", False)):
            raise ConfigError(NO_ATTENTIONS)
        if options.get("attention_mask") is not None:
            raise ConfigError(NO_MASK)
        embedded, numbers = self.embedded(*inputs), self._numbers(options.get("output_hidden_states"))
        way = self.merging.unmerge if numbers else None
        found = self.encode_embedded(
            embedded,
            taps=[number - 1 for number in numbers if number],
            unmerge=None if way == "copy" else way,
        )
        last = unmerge_tokens(found.final.tokens, found.final.merges)
        taps = [harden(state) for state in found.taps] if way == "copy" else found.taps
        first = [embedded.state.tokens] * (0 in numbers)
        grids = dict(zip(numbers, [*first, *map(unmerge_state, taps)], strict=True))
        every = tuple(grids.get(number) for number in range(len(self.merging_blocks) + 1))
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=self.pooled(last, *inputs),
            hidden_states=every if numbers else None,  # pyright: ignore[reportArgumentType] - as transformers'
        )

    def _numbers(self, wanted: bool | int | Sequence[int] | None) -> list[int]:
        """The states in [0, L] that are returned: of all or of the named blocks; 0 is before the first."""
        if wanted is None:
            wanted = bool(getattr(self.config, "output_hidden_states", False))
        count = len(self.merging_blocks) + 1
        if isinstance(wanted, bool):
            return list(range(count)) if wanted else []
        named = [wanted] if isinstance(wanted, int) else wanted
        return sorted({number % count for number in named if -count <= number < count})


NO_ATTENTIONS = (
    "attention between positions is not there once tokens merged; leave output_attentions out, or unpatch "
    "the model"
)
NO_MASK = "a mask of attention says nothing of merged tokens; leave attention_mask out, or unpatch the model"


def started(tokens: Tensor, images: Tensor, patches: nn.Conv2d) -> TokenState:
    """The state before the first block, for tokens [B, N, C] of images [B, 3, H, W] that a convolution cut
    into patches."""
    height, width = (images.shape[-2 + side] // int(patches.stride[side]) for side in (0, 1))
    return TokenState.start(tokens, (height, width), tokens.shape[1] - height * width)
