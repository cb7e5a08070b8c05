"""What is trained, at which learning rate, in which step: all closed forms of the configuration and the
step."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import OptimConfig, RunConfig
from pipeline.errors import ConfigError
from pipeline.parts import BALANCE, BASE, HEAD, METRIC, TRAINED

NO_DECAY_NAMES = ("pos_embed", "cls_token", "reg_token", "dist_token")
_OWNER = re.compile(r"(?:^|\.)(?:tasks|adapters|log_variance)\.(\w+)")


def kind_of(name: str) -> str:
    if name.startswith("balancing."):
        return BALANCE
    if name.startswith("tasks."):
        return HEAD
    return METRIC if ".metric." in name else BASE


def owner_of(name: str) -> str | None:
    """The task that alone uses the parameter; None for what tasks share."""
    found = _OWNER.search(name)
    return found[1] if found else None


def set_trainable(model: nn.Module, mode: str, frozen: Collection[str] = ()) -> None:
    """Freezes what the mode does not train, and what frozen tasks own. ConfigError where a mode finds nothing
    to learn."""
    kinds = {name: kind_of(name) for name, _ in model.named_parameters()}
    if METRIC in TRAINED[mode] and METRIC not in kinds.values():
        raise ConfigError(
            f"train.mode is '{mode}', but the merge policy has no metric embedding to learn; "
            "give train.mode='backbone', or merging.policy='dtem' with a reduction"
        )
    for name, parameter in model.named_parameters():
        wanted = kinds[name] in TRAINED[mode] | {BALANCE} and owner_of(name) not in frozen
        parameter.requires_grad_(wanted and parameter.is_floating_point())


def set_modes(model: nn.Module, trained: Collection[str]) -> None:
    """Training mode for the parts that learn in a step that trains these kinds; the others, frozen or
    resting, are in evaluation mode, so that their dropout, drop path and batch statistics neither blur nor
    change what they are.

    A part that has parameters of its own kind goes by them (a block is no metric embedding, though it holds
    one), one that has none by the part that holds it. The model itself is in training mode: it says what the
    pass is for.
    """
    learns: dict[str, bool] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kind, parents = kind_of(name), name.split(".")[:-1]
        for depth in range(len(parents) + 1):
            part = ".".join(parents[:depth])
            if kind_of(f"{part}.") == kind:
                learns[part] = learns.get(part, False) or (parameter.requires_grad and kind in trained)
    for name, part in model.named_modules():
        part.training = learns.setdefault(name, learns.get(name.rpartition(".")[0], False))
    model.training = True


def parameter_groups(model: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """Trainable parameters as dicts of name, kind, owner, params, weight_decay and lr_scale, in a fixed
    order.

    owner: the task that alone uses them, or None. Biases, norms and other one-dimensional parameters and
    timm's position and prefix embeddings do not decay.
    """
    depth = 1 + max(
        (int(found[1]) for name, _ in model.named_parameters() if (found := _BLOCK.match(name))), default=-1
    )
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind, owner, layer = kind_of(name), owner_of(name), _layer_of(name, depth)
        decays = parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in NO_DECAY_NAMES
        lr_scale = config.optim.layer_decay ** (depth + 1 - layer) if kind == BASE else 1.0
        place = [
            kind,
            *([owner] if owner else []),
            *([str(layer)] if lr_scale != 1 else []),
            "decay" if decays else "plain",
        ]
        group = groups.setdefault(
            ".".join(place),
            dict(
                kind=kind,
                owner=owner,
                params=[],
                weight_decay=config.optim.weight_decay if decays else 0.0,
                lr_scale=lr_scale,
            ),
        )
        group["params"].append(parameter)
    return [dict(name=name, **groups[name]) for name in sorted(groups)]


_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")


def _layer_of(name: str, depth: int) -> int:
    """0 for what comes before the blocks, 1 ... depth for the blocks, depth + 1 for what comes after and for
    heads."""
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


def rates_of_kinds(step: int, config: RunConfig, total_steps: int) -> dict[str, float]:
    """Learning rate of each kind of parameters, whether or not it rests in this step; layers of the backbone
    may have less of it."""
    optim = config.optim
    peaks = {
        BASE: optim.lr,
        HEAD: optim.lr,
        METRIC: optim.lr if optim.metric_lr is None else optim.metric_lr,
        BALANCE: config.balancing.lr,
    }
    return {kind: lr_at(step, optim, total_steps, peak) for kind, peak in peaks.items()}


def reported_rates(
    groups: Sequence[Mapping[str, Any]], step: int, config: RunConfig, total_steps: int
) -> dict[str, float]:
    """`lr/KIND` of each kind that the run trains, and `lr`: that of the backbone, or else of the heads, or
    else of the embeddings."""
    kinds, rates = {group["kind"] for group in groups}, rates_of_kinds(step, config, total_steps)
    model = next((kind for kind in (BASE, HEAD, METRIC) if kind in kinds), BALANCE)
    return {"lr": rates[model]} | {f"lr/{kind}": rates[kind] for kind in sorted(kinds)}


def learning_rates(
    groups: Sequence[Mapping[str, Any]],
    step: int,
    config: RunConfig,
    total_steps: int,
    *,
    trains: Collection[str] | None = None,
    tasks: Collection[str] | None = None,
) -> dict[str, float]:
    """Learning rate of each parameter group, by its name; 0 for a group that rests in this step.

    trains: the kinds that learn in it. tasks: those that it holds; what only others use rests. None: all.
    """
    rates = {
        kind: rate if trains is None or kind in trains else 0.0
        for kind, rate in rates_of_kinds(step, config, total_steps).items()
    }
    idle = [
        group["owner"] is not None and tasks is not None and group["owner"] not in tasks for group in groups
    ]
    return {
        g["name"]: 0.0 if rests else rates[g["kind"]] * g["lr_scale"]
        for g, rests in zip(groups, idle, strict=True)
    }


class GradientGate:
    """Makes the gradients of resting kinds exactly zero, on the leaf, before any engine sees or sums them.

    The factor is a device scalar, so closing and opening asks the device nothing; it works under every ZeRO
    stage.
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
