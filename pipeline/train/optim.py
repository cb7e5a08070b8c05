"""What is trained, at which learning rate, in which step: all closed forms of the configuration and the step."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import OptimConfig, RunConfig, TrainConfig
from pipeline.errors import ConfigError

METRIC, BASE = "metric", "base"
"""The kinds of parameters: metric embeddings; backbone and heads."""

NO_DECAY_NAMES = ("pos_embed", "cls_token", "reg_token", "dist_token")


def kind_of(name: str) -> str:
    return METRIC if ".metric." in name else BASE


@dataclass(frozen=True)
class Phase:
    """What one step does. relaxed: passed to the model (None: the policy's own way). trained: kinds that move in this step."""

    relaxed: bool | None
    trained: frozenset[str]


def phase_at(step: int, config: TrainConfig) -> Phase:
    """end_to_end: every `alternate_period`-th step trains the embeddings under the relaxed merge, the others the rest, merged hard."""
    if config.mode == "end_to_end":
        metric_turn = step % config.alternate_period == config.alternate_period - 1
        return Phase(metric_turn, frozenset({METRIC if metric_turn else BASE}))
    if config.mode == "backbone":
        return Phase(False, frozenset({BASE}))
    return Phase(None, frozenset({METRIC} if config.mode == "modular" else {METRIC, BASE}))


def set_trainable(model: nn.Module, mode: str) -> None:
    """Freezes what the mode does not train. ConfigError where a mode that learns embeddings finds none."""
    wanted = {"modular": {METRIC}, "backbone": {BASE}}.get(mode, {METRIC, BASE})
    found = {kind_of(name) for name, _ in model.named_parameters()}
    if METRIC in wanted and METRIC not in found:
        raise ConfigError(
            f"train.mode is '{mode}', but the merge policy has no metric embedding to learn; "
            "give train.mode='backbone', or merging.policy='dtem' with a reduction"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(kind_of(name) in wanted and parameter.is_floating_point())


def parameter_groups(model: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """Trainable parameters as dicts of name, kind, params, weight_decay and lr_scale, in a fixed order.

    Biases, norms and other one-dimensional parameters and timm's position and prefix embeddings do not decay.
    """
    depth = 1 + max((int(found[1]) for name, _ in model.named_parameters() if (found := _BLOCK.match(name))), default=-1)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind, layer = kind_of(name), _layer_of(name, depth)
        decays = parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in NO_DECAY_NAMES
        lr_scale = config.optim.layer_decay ** (depth + 1 - layer) if kind == BASE else 1.0
        where = f"{kind}.{layer}" if lr_scale != 1 else kind
        group = groups.setdefault(
            f"{where}.{'decay' if decays else 'plain'}",
            dict(kind=kind, params=[], weight_decay=config.optim.weight_decay if decays else 0.0, lr_scale=lr_scale),
        )
        group["params"].append(parameter)
    return [dict(name=name, **groups[name]) for name in sorted(groups)]


_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")


def _layer_of(name: str, depth: int) -> int:
    """0 for what comes before the blocks, 1 ... depth for the blocks, depth + 1 for what comes after and for heads."""
    if block := _BLOCK.match(name):
        return int(block[1]) + 1
    before = name.startswith("backbone.") and not name.startswith("backbone.norm.")
    return 0 if before else depth + 1


def lr_at(step: int, config: OptimConfig, total_steps: int, peak: float | None = None) -> float:
    """Linear warm-up to `peak` (optim.lr), then half a cosine to min_lr; above 0 in every step."""
    peak = config.lr if peak is None else peak
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    floor = min(config.min_lr, peak)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def learning_rates(groups: Sequence[Mapping[str, Any]], step: int, config: RunConfig, total_steps: int) -> dict[str, float]:
    """Learning rate of each parameter group, by its name; 0 for a group that rests in this step."""
    optim, trained = config.optim, phase_at(step, config.train).trained
    peaks = {BASE: optim.lr, METRIC: optim.lr if optim.metric_lr is None else optim.metric_lr}
    rates = {kind: lr_at(step, optim, total_steps, peaks[kind]) if kind in trained else 0.0 for kind in peaks}
    return {group["name"]: rates[group["kind"]] * group["lr_scale"] for group in groups}


class GradientGate:
    """Makes the gradients of resting kinds exactly zero, on the leaf, before any engine sees or sums them.

    The factor is a device scalar, so closing and opening asks the device nothing; it works under every ZeRO stage.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], device: torch.device):
        self._open = {group["kind"]: torch.ones((), device=device) for group in groups}
        for group in groups:
            for parameter in group["params"]:
                parameter.register_hook(self._hook(self._open[group["kind"]]))

    @staticmethod
    def _hook(factor: Tensor):
        return lambda gradient: gradient * factor

    def open(self, kinds: frozenset[str]) -> None:
        """From now on only these kinds receive gradients."""
        for kind, factor in self._open.items():
            factor.fill_(float(kind in kinds))
