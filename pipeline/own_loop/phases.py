"""What learns in a step of somebody's own loop, by the rules of ours."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.errors import ConfigError
from pipeline.modes import set_modes
from pipeline.parts import METRIC, roles_of_modules

ALTERNATE, MODULAR, JOINT = MODES = ("alternate", "modular", "joint")


@dataclass(frozen=True)
class Phase:
    """What a step trains: the metric embeddings, all else, or both.

    Around the forward and backward passes of a step: `begin` before them, `end` after them. Both take the
    patched model, or a module that holds it: a Lightning module, DDP, one with further heads.
    """

    embeddings: bool
    others: bool

    def begin(self, module: nn.Module) -> None:
        """Parts that learn are in training mode, and others in evaluation mode, without dropout. Merges are
        differentiable where embeddings learn, else those of inference. Raises ConfigError where no part is
        patched."""
        patched = list(_patched(module))
        set_modes(module, [METRIC] * self.embeddings + [None] * self.others)
        for model in patched:
            model.training = True  # the purpose of the pass; its parts have modes of their own
            model.merging = replace(model.merging, learns=self.embeddings)

    def end(self, module: nn.Module) -> None:
        """Call it behind the backward passes, before gradients are clipped. What does not learn loses its
        gradient, so that the optimizer passes it over: its weights, moments and decay. What learns and was
        not reached has a gradient of zero: its moments go on."""
        for kind, parameter in _parameters(module):
            if not (self.embeddings if kind == METRIC else self.others):
                parameter.grad = None
            elif parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)


EMBEDDINGS, OTHERS, BOTH = Phase(True, False), Phase(False, True), Phase(True, True)


def phase_of(step: int, mode: str = ALTERNATE, *, period: int = 10) -> Phase:
    """The phase of optimizer step number `step`, a pure function of it, so the same on every rank.

    mode: `alternate` (`train.mode="end_to_end"` of our configs): every period-th step trains the embeddings,
    and the others all else. `modular`: the embeddings alone. `joint`: both in every step. Raises ConfigError.
    """
    if mode not in MODES or period < 2:
        raise ConfigError(
            f"phase_of: mode '{mode}', period {period}; give one of {', '.join(MODES)}, 2 or more"
        )
    if mode != ALTERNATE:
        return EMBEDDINGS if mode == MODULAR else BOTH
    return EMBEDDINGS if step % period == period - 1 else OTHERS


def embeddings_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of the metric embeddings, for an optimizer of their own."""
    return [parameter for kind, parameter in _parameters(module) if kind == METRIC]


def the_patched(module: nn.Module) -> MergingModel:
    """The patched model that a module is or holds. Raises ConfigError."""
    return next(_patched(module))


def _patched(module: nn.Module) -> Iterator[MergingModel]:
    found = [part for part in module.modules() if isinstance(part, MergingModel)]
    if not found:
        raise ConfigError(f"{type(module).__name__} holds no patched model; give it to dtem.patch first")
    return iter(found)


def _parameters(module: nn.Module) -> Iterator[tuple[str | None, nn.Parameter]]:
    """(kind, parameter) of each parameter, once."""
    roles = roles_of_modules(module)
    for name, parameter in module.named_parameters():
        yield roles[name.rpartition(".")[0]].kind, parameter
