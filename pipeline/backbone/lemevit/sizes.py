"""The authors' sizes of LeMeViT, by the names that `backbone.name` gives."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.backbone.backbone import BACKBONES
from pipeline.backbone.lemevit.model import LeMeViT
from pipeline.backbone.lemevit.plan import StagePlan
from pipeline.config.schema import height_width
from pipeline.merging.policy import MergePolicy
from pipeline.merging.traits import refuse_merging

IMG_SIZE = 224


class Size(NamedTuple):
    """Blocks and channels of the stages, of kinds C, D, D, S, S."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]


SIZES = {
    "lemevit_tiny": Size((1, 2, 2, 8, 2), (64, 64, 128, 192, 320)),
    "lemevit_small": Size((1, 2, 2, 6, 2), (96, 96, 192, 320, 384)),
    "lemevit_base": Size((2, 4, 4, 18, 4), (96, 96, 192, 384, 512)),
}


def _builder(name: str, size: Size) -> Callable[..., LeMeViT]:
    def build(
        policy: MergePolicy,
        *,
        img_size: int | tuple[int, int] | None = None,
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
        depths: Sequence[int] = size.depths,
        widths: Sequence[int] = size.widths,
        kinds: str = "CDDSS",
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        num_meta: int = 16,
        layer_scale: float | None = None,
        in_chans: int = 3,
    ) -> LeMeViT:
        """Options: see StagePlan. img_size: pixels per side, or (height, width); None: 224. Raises
        ConfigError."""
        refuse_merging(policy, f"'{name}'", LeMeViT.never_merges)
        plan = StagePlan(
            depths=depths,
            widths=widths,
            kinds=kinds,
            head_dim=head_dim,
            mlp_ratio=mlp_ratio,
            num_meta=num_meta,
            layer_scale=layer_scale,
            in_chans=in_chans,
        )
        pixels = height_width(img_size or IMG_SIZE)
        options = {"drop_path": drop_path, "grad_checkpointing": grad_checkpointing}
        return LeMeViT(plan, policy, img_size=pixels, **options)

    return build


for _name, _size in SIZES.items():
    BACKBONES.register(_name)(_builder(_name, _size))
