"""Models of transformers around an image tower: with a classifier, a projection, a text tower. The tower
merges, and the rest stays the library's."""

# pyright: reportIncompatibleVariableOverride=false
# how the model merges is what its tower has of it

from collections.abc import Sequence
from typing import Any

from torch import nn

from pipeline.backbone.patching.hugging_face_models import TOWERS
from pipeline.backbone.patching.merging_model import Merging, MergingModel, as_class, bases_of, class_of
from pipeline.backbone.patching.passed_by import own_members
from pipeline.errors import ConfigError
from pipeline.token_state import BackboneOutput


def host_of_transformers(model: nn.Module) -> type[MergingModel]:
    """The host of a model of transformers. Raises ConfigError where there is none."""
    host = _host_of_tower(model)
    if host is None:
        tower_in(model)
    return host or MergingAround


class MergingAround(MergingModel):
    """A model with one image tower, which says how it merges."""

    @classmethod
    def name_for(cls, library: type[nn.Module]) -> str:
        return library.__name__

    @classmethod
    def refuses(cls, model: nn.Module) -> str | None:
        tower = tower_in(model)
        host = host_of_transformers(tower)
        return host.refuses(tower) or own_members(tower, host)

    @classmethod
    def blocks_of(cls, model: nn.Module) -> Sequence[nn.Module]:
        tower = tower_in(model)
        return host_of_transformers(tower).blocks_of(tower)

    @classmethod
    def become(cls, model: nn.Module, merging: Merging) -> MergingModel:
        tower = tower_in(model)
        host_of_transformers(tower).become(tower, merging)
        return as_class(model, class_of(cls, type(model)))

    def restore(self) -> None:
        _, library = bases_of(self)
        self.tower.restore()
        as_class(self, library)

    @property
    def tower(self) -> MergingModel:
        """The image tower. Raises ConfigError where it was unpatched alone."""
        tower = tower_in(self)
        if not isinstance(tower, MergingModel):
            raise ConfigError(
                f"the image tower of this {type(self).__name__} was unpatched alone; patch it again, and "
                "unpatch the whole model"
            )
        return tower

    @property
    def merging(self) -> Merging:
        return self.tower.merging

    @merging.setter
    def merging(self, merging: Merging) -> None:
        self.tower.merging = merging

    @property
    def rope(self) -> nn.Module | None:
        return getattr(self.tower, "rope", None)

    def encode(self, *inputs: Any, **options: Any) -> BackboneOutput:
        """The merged states of the image tower, see `MergingModel.encode`."""
        return self.tower.encode(*inputs, **options)


def tower_in(model: nn.Module) -> nn.Module:
    """The one image tower in a model. Raises ConfigError where there is none, or more than one."""
    towers = [part for part in model.modules() if _host_of_tower(part) is not None]
    if len(towers) == 1:
        return towers[0]
    known = ", ".join(sorted(kind.__name__ for kind in TOWERS))
    if towers:
        raise ConfigError(
            f"{type(model).__name__} has {len(towers)} image towers; patch each of them alone, "
            "as each merges for itself"
        )
    raise ConfigError(
        f"{type(model).__name__} of transformers cannot merge: merging knows {known}, and models around "
        "one of them, such as ViTForImageClassification (docs/models.md)"
    )


def _host_of_tower(model: nn.Module) -> type[MergingModel] | None:
    return next((TOWERS[kind] for kind in type(model).__mro__ if kind in TOWERS), None)
