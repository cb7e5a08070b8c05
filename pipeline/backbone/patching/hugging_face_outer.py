"""Models of transformers around an image tower: with a classifier, a projection, a text tower."""

from torch import nn

from pipeline.backbone.patching.hugging_face_models import TOWERS
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.patching.outer import MergingAround, only


def host_of_transformers(model: nn.Module) -> type[MergingModel]:
    """The host of a model of transformers. Raises ConfigError where there is none."""
    host = _host_of_tower(model)
    if host is None:
        MergingAroundTower.tower_in(model)
    return host or MergingAroundTower


class MergingAroundTower(MergingAround):
    """It has the name of the library's class, as its towers have."""

    @classmethod
    def name_for(cls, library: type[nn.Module]) -> str:
        return library.__name__

    @classmethod
    def tower_in(cls, model: nn.Module) -> tuple[nn.Module, type[MergingModel]]:
        known = ", ".join(sorted(kind.__name__ for kind in TOWERS))
        hosts = {part: host for part in model.modules() if (host := _host_of_tower(part)) is not None}
        tower = only(
            list(hosts),
            model,
            f"{type(model).__name__} of transformers cannot merge: merging knows {known}, and models around "
            "one of them, such as ViTForImageClassification (docs/models.md)",
        )
        return tower, hosts[tower]


def _host_of_tower(model: nn.Module) -> type[MergingModel] | None:
    return next((TOWERS[kind] for kind in type(model).__mro__ if kind in TOWERS), None)
