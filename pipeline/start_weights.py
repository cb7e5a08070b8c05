"""The weights that a run's training starts from."""

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.files import Weights, read_state_dict
from pipeline.backbone.weights.keys import backbone_of
from pipeline.backbone.weights.load import check_filled, load_weights
from pipeline.config.schema import RunConfig
from pipeline.errors import CheckpointError
from pipeline.parts import BASE, HEAD, METRIC, TRAINED, Role, roles_of

log = logging.getLogger(__name__)


def load_start(model: nn.Module, config: RunConfig) -> None:
    """Loads them into the MultiTaskModel of the run. Raises CheckpointError where they lack a tensor that
    training freezes, as it would stay random."""
    sources = _sources(model, config)
    if not sources:
        return
    filled: set[str] = set()
    redrawn: dict[str, str] = {}
    for source, tensors in sources.items():
        try:
            report = load_weights(model, tensors)
        except CheckpointError as err:
            raise CheckpointError(f"{source}: {err}") from err
        log.info("%s: %s", source, report)
        filled.update(report.sources, report.started)
        redrawn |= report.redrawn
    names = " and ".join(sources)
    check_filled(model, filled, names)
    _check_missing(model, [name for name in model.state_dict() if name not in filled], redrawn, names, config)


def _sources(model: nn.Module, config: RunConfig) -> dict[str, Mapping[str, Tensor]]:
    """The state dicts that the config names, in their order, by what messages call them."""
    spec = config.backbone
    sources: dict[str, Mapping[str, Tensor]] = {}
    if spec.pretrained:
        vit = create_vit(
            spec.name, pretrained=True, num_classes=None, img_size=spec.img_size, timm_options=spec.options
        )
        sources[f"timm's {spec.name}"] = Weights(vit.state_dict(), backbone_of(model).grid)
    if spec.weights:
        sources[spec.weights] = read_state_dict(spec.weights)
    return sources


def _check_missing(
    model: nn.Module, missing: list[str], redrawn: Mapping[str, str], names: str, config: RunConfig
) -> None:
    """Raises CheckpointError where a tensor that no source filled would stay as it was drawn. redrawn: key ->
    both shapes, where the number of classes differs. names: those of the sources."""
    roles, mode = roles_of(model), config.train.mode
    if lacking := [name for name in missing if _stays(roles[name], config)]:
        first = lacking[0]
        shapes = f" for this number of classes: it is {redrawn[first]}" if first in redrawn else ""
        raise CheckpointError(
            f"{names} has no {first}{shapes} ({len(lacking)} tensors in all), which train.mode='{mode}' "
            "would freeze as it was drawn; give weights that have it, or train it first with "
            "train.mode='backbone'"
        )
    drawn = [name for name in missing if roles[name].kind == METRIC]
    if drawn and mode == "heads":
        log.warning(
            "tokens merge by %s, which stays as it was drawn; teach it with train.mode='modular'", drawn[0]
        )


def _stays(role: Role, config: RunConfig) -> bool:
    """Whether training leaves this part of the backbone or of a head as it is."""
    frozen = role.owner is not None and config.tasks[role.owner].frozen
    return role.kind in (BASE, HEAD) and (frozen or role.kind not in TRAINED[config.train.mode])
