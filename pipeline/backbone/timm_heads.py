"""What the head of a model of timm gives: logits of classes, whose names may be known, or a projection."""

from collections.abc import Sequence

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import get_arch_pretrained_cfgs
from torch import nn

from pipeline.backbone.adapters.embeddings import architecture_of, pretrained_of


def num_classes_of(model: nn.Module) -> int:
    """Width of the head; 0 without one."""
    return int(getattr(model, "num_classes", 0) or 0)


def may_project(model: nn.Module) -> bool:
    """Whether the head is as wide as one of timm's own for this architecture. Where nobody names its classes
    it is a projection, such as CLIP's."""
    own = get_arch_pretrained_cfgs(architecture_of(model)).values()
    return num_classes_of(model) in {known.num_classes for known in own}


def described(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with words for the synsets that timm knows: `n01440764` is `tench, Tinca tinca`."""
    info = ImageNetInfo("imagenet-22k") if names else None
    return tuple(_words(info, name) for name in names)


def _words(info: ImageNetInfo | None, name: str) -> str:
    try:
        return name if info is None else info.label_name_to_description(name)
    except KeyError:
        return name


def label_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the labels of timm's head: those in its config, else those of ImageNet with as many."""
    own = pretrained_of(model).get("label_names")
    if not num_classes_of(model):
        return ()
    if isinstance(own, list) and len(own) == num_classes_of(model):
        return tuple(map(str, own))
    subset = infer_imagenet_subset(model)
    return tuple(ImageNetInfo(subset).label_names()) if subset else ()
