"""A model around an image tower that merges, for instance with a classifier. The tower merges, and the rest
stays the library's."""

# pyright: reportIncompatibleVariableOverride=false
# how the model merges is what its tower has of it

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from pipeline.backbone.classes import as_class, bases_of, class_of
from pipeline.backbone.patching.merging_model import Merging, MergingModel
from pipeline.backbone.patching.passed_by import own_members
from pipeline.backbone.rotary import RotaryRule
from pipeline.errors import ConfigError
from pipeline.token_state import BackboneOutput


class MergingAround(MergingModel):
    """A model with one image tower, which says how it merges."""

    @classmethod
    def tower_in(cls, model: nn.Module) -> tuple[nn.Module, type[MergingModel]]:
        """The one image tower in a model, and its host. Raises ConfigError where there is none, or more than
        one."""
        raise NotImplementedError

    @classmethod
    def refuses(cls, model: nn.Module) -> str | None:
        tower, host = cls.tower_in(model)
        return host.refuses(tower) or own_members(tower, host)

    @classmethod
    def blocks_of(cls, model: nn.Module) -> Sequence[nn.Module]:
        tower, host = cls.tower_in(model)
        return host.blocks_of(tower)

    @classmethod
    def traits(cls, model: nn.Module, rule: RotaryRule) -> frozenset[str]:
        tower, host = cls.tower_in(model)
        return host.traits(tower, rule)

    @classmethod
    def become(cls, model: nn.Module, merging: Merging) -> MergingModel:
        tower, host = cls.tower_in(model)
        host.become(tower, merging)
        return cast(MergingModel, as_class(model, class_of(cls, type(model))))

    def restore(self) -> None:
        _, library = bases_of(self)
        self.tower.restore()
        as_class(self, library)

    @property
    def tower(self) -> MergingModel:
        """The image tower. Raises ConfigError where it was unpatched alone."""
        tower, _ = self.tower_in(self)
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


def only(towers: Sequence[nn.Module], model: nn.Module, none: str) -> nn.Module:
    """The one image tower of a model. none: the message where there is none. Raises ConfigError."""
    if len(towers) == 1:
        return towers[0]
    if towers:
        raise ConfigError(
            f"{type(model).__name__} has {len(towers)} image towers; patch each of them alone, "
            "as each merges for itself"
        )
    raise ConfigError(none)
