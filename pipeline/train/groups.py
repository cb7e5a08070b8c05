"""The parameters of a model in groups, whose members an optimizer treats alike."""

from collections.abc import Sequence
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.engine.optimizers import for_matrices
from pipeline.model import MultiTaskModel
from pipeline.parts import BASE, Role, roles_of


def parameter_groups(model: MultiTaskModel, config: RunConfig) -> list[dict[str, Any]]:
    """Trainable parameters as dicts of name, kind, owner, params, matrix, weight_decay and lr_scale, in a
    fixed order.

    owner: the task that alone uses them, or None. matrix: whether they are matrices of the backbone's blocks,
    and the optimizer moves such in a way of their own. Biases, norms and other one-dimensional parameters do
    not decay, nor do those that a module lists in its attribute `undecayed`.
    """
    roles, (layers, depth) = roles_of(model), _layers(model)
    own_way = for_matrices(config.optim)
    undecayed = {
        id(parameter)
        for module in model.modules()
        if hasattr(module, "undecayed")
        for name, parameter in module.named_parameters()
        if name in getattr(module, "undecayed", ())
    }
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role, layer = roles[name], layers.get(id(parameter), depth + 1)
        decays = parameter.ndim > 1 and id(parameter) not in undecayed
        matrix = own_way and role.kind == BASE and 1 <= layer <= depth and parameter.ndim == 2
        lr_scale = config.optim.layer_decay ** (depth + 1 - layer) if role.kind == BASE else 1.0
        group = groups.setdefault(
            _name(role, layer if lr_scale != 1 else None, matrix, decays),
            dict(
                kind=role.kind,
                owner=role.owner,
                params=[],
                matrix=matrix,
                weight_decay=config.optim.weight_decay if decays else 0.0,
                lr_scale=lr_scale,
            ),
        )
        group["params"].append(parameter)
    return [dict(name=name, **groups[name]) for name in sorted(groups)]


def _name(role: Role, layer: int | None, matrix: bool, decays: bool) -> str:
    way, decay = "matrix" if matrix else None, "decay" if decays else "plain"
    place: Sequence[str | int | None] = (role.kind, role.owner, layer, way, decay)
    return ".".join(str(part) for part in place if part is not None)


def _layers(model: MultiTaskModel) -> tuple[dict[int, int], int]:
    """Layer of each parameter of the backbone, or of both, by its id, and how many blocks there are. 0 is
    before the blocks, 1 ... depth the blocks, depth + 1 the norm behind them; and with it all that is no part
    of the backbone."""
    layers: dict[int, int] = {}
    for backbone in (network.backbone for network in model.networks):
        layers |= {id(parameter): 0 for parameter in backbone.parameters()}
        for number, parts in enumerate(backbone.layers(), start=1):
            layers |= {id(parameter): number for part in parts for parameter in part.parameters()}
    return layers, len(model.backbone.blocks)
