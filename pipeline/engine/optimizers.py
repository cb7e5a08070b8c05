"""The optimizers by name. A new one is a class here: all laws of engines and checkpoints then run on it."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.optim.lamb import Lamb
from timm.optim.lion import Lion
from timm.optim.muon import Muon
from torch import Tensor

from pipeline.config.schema import OptimConfig, RunConfig
from pipeline.engine.optimizer import GroupOptimizer, zeros
from pipeline.errors import ConfigError
from pipeline.parts import BASE, TRAINED
from pipeline.registry import Registry

Groups = Sequence[Mapping[str, Any]]
Betas = tuple[float, float]
ADJUSTMENTS = ("match_rms_adamw", "original", "rms_to_rms")
"""How Muon scales its steps by the shape of a matrix."""
OPTIMIZERS: Registry[GroupOptimizer] = Registry("optimizer")


@OPTIMIZERS.register("adamw")
class GroupAdamW(GroupOptimizer, torch.optim.AdamW):
    """torch's fused AdamW, of which the device itself skips a step; the host does not wait for it."""

    moments = ("exp_avg", "exp_avg_sq")
    skips_on_device = True

    def __init__(self, groups: Groups, *, betas: Betas = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(groups, betas=betas, eps=eps, fused=True)

    @classmethod
    def new_state(cls, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        count = torch.zeros((), dtype=torch.float32, device=param.device)
        return {"step": count, **zeros(param, cls.moments)}


@OPTIMIZERS.register("sgd")
class GroupSGD(GroupOptimizer, torch.optim.SGD):
    """torch's fused SGD with momentum, which skips as `GroupAdamW` does."""

    moments = ("momentum_buffer",)
    skips_on_device = True

    def __init__(self, groups: Groups, *, momentum: float = 0.9, nesterov: bool = False):
        super().__init__(groups, momentum=momentum, nesterov=nesterov, fused=True)

    @classmethod
    def new_state(cls, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return zeros(param, cls.moments)


@OPTIMIZERS.register("lion")
class GroupLion(GroupOptimizer, Lion):
    """timm's Lion (arXiv 2302.06675)."""

    moments = ("exp_avg",)

    def __init__(self, groups: Groups, *, betas: Betas = (0.9, 0.99), caution: bool = False):
        super().__init__(groups, betas=betas, caution=caution)

    @classmethod
    def new_state(cls, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return zeros(param, cls.moments)


@OPTIMIZERS.register("lamb")
class GroupLamb(GroupOptimizer, Lamb):
    """timm's LAMB (arXiv 1904.00962). It takes the norm of each parameter, so it needs whole ones. Gradients
    are clipped by `optim.clip_grad` alone."""

    moments = ("exp_avg", "exp_avg_sq")
    elementwise = False

    def __init__(
        self,
        groups: Groups,
        *,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-6,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        trust_clip: bool = False,
        always_adapt: bool = False,
        decoupled_decay: bool = False,
    ):
        super().__init__(
            groups,
            betas=betas,
            eps=eps,
            bias_correction=bias_correction,
            grad_averaging=grad_averaging,
            trust_clip=trust_clip,
            always_adapt=always_adapt,
            decoupled_decay=decoupled_decay,
            max_grad_norm=None,
        )

    @classmethod
    def new_state(cls, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """timm counts the steps of a group; its parameters share that count."""
        return {"step": group.setdefault("step", torch.zeros(())), **zeros(param, cls.moments)}


@OPTIMIZERS.register("muon")
class GroupMuon(GroupOptimizer, Muon):
    """timm's Muon for the matrices of the backbone's blocks, and its AdamW for everything else. It needs
    whole matrices."""

    moments = ("momentum_buffer", "exp_avg", "exp_avg_sq")
    elementwise = False
    for_matrices = True

    def __init__(
        self,
        groups: Groups,
        *,
        betas: Betas = (0.9, 0.95),
        momentum: float = 0.95,
        nesterov: bool = False,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        fallback_lr_scale: float = 1.0,
    ):
        if adjust_lr_fn not in ADJUSTMENTS:
            raise ValueError(f"adjust_lr_fn is '{adjust_lr_fn}'; give one of {', '.join(ADJUSTMENTS)}")
        groups = [{**group, "use_fallback": not group.get("matrix", False)} for group in groups]
        super().__init__(
            groups,
            betas=betas,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            fallback_lr_scale=fallback_lr_scale,
        )

    @classmethod
    def new_state(cls, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        if group.get("matrix", False):
            return {"use_muon": True, **zeros(param, cls.moments[:1])}
        return {"use_muon": False, "step": torch.zeros(()), **zeros(param, cls.moments[1:])}


def build_optimizer(config: OptimConfig, groups: Groups) -> GroupOptimizer:
    """The optimizer of the configuration. groups: as of `parameter_groups`. Raises ConfigError for options
    that it does not take."""
    if "betas" in config.options:
        raise ConfigError("optim.options has betas; set optim.betas, which any optimizer with betas takes")
    betas = {} if config.betas is None else {"betas": config.betas}
    try:
        return OPTIMIZERS.build(config.type, groups, **betas, **config.options)
    except (ValueError, TypeError) as err:
        raise ConfigError(f"optim.options {config.options}: {err}") from err


def complete_optimizer(config: RunConfig) -> RunConfig:
    """The run with the betas of its optimizer, where it has such and they are not given."""
    known = inspect.signature(OPTIMIZERS.get(config.optim.type)).parameters
    if config.optim.betas is not None or "betas" not in known:
        return config
    return replace(config, optim=replace(config.optim, betas=known["betas"].default))


def check_optimizer(config: RunConfig, *, divided: str = "") -> None:
    """Raises ConfigError where the optimizer cannot carry out this run. divided: the settings by which no
    rank holds whole parameters in its optimizer; empty: all are whole."""
    kind, name = _kind(config.optim.type), config.optim.type
    build_optimizer(config.optim, [{"params": [torch.zeros(2, 2)], "name": "probe"}])
    if divided and not kind.elementwise:
        raise ConfigError(
            f"optim.type is '{name}', which needs whole parameters, and {divided} cuts them up; give "
            f"engine.type='deepspeed' with zero_stage=0, or one of {', '.join(_elementwise())}"
        )
    if kind.for_matrices and BASE not in TRAINED[config.train.mode]:
        raise ConfigError(
            f"optim.type is '{name}', which is for the matrices of the backbone, and train.mode="
            f"'{config.train.mode}' trains none of them; give another optim.type, such as 'adamw'"
        )


def state_shapes(
    config: OptimConfig, groups: Groups, shapes: Mapping[int, tuple[str, tuple[int, ...]]]
) -> dict[str, tuple[int, ...]]:
    """Maps the name in a checkpoint of each tensor that the optimizer keeps to its shape. groups: as of
    `parameter_groups`. shapes: maps the id of a parameter to its name and shape."""
    kind, found = _kind(config.type), {}
    for group in groups:
        for parameter in group["params"]:
            name, shape = shapes[id(parameter)]
            state = kind.new_state(torch.empty(shape, device="meta"), dict(group))
            found |= {f"{key}.{name}": tuple(t.shape) for key, t in state.items() if isinstance(t, Tensor)}
    return found


def _kind(name: str) -> type[GroupOptimizer]:
    kind = OPTIMIZERS.get(name)
    assert isinstance(kind, type) and issubclass(kind, GroupOptimizer)
    return kind


def for_matrices(config: OptimConfig) -> bool:
    """Whether the optimizer moves matrices of the backbone's blocks in a way of their own."""
    return _kind(config.type).for_matrices


def _elementwise() -> list[str]:
    return [name for name in OPTIMIZERS.names() if _kind(name).elementwise]
