"""The merging ViT as a backbone of MMSegmentation's own configs, for mmengine's own Runner."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from pipeline.backbone.build import create_vit
from pipeline.backbone.vit import MergingViT
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.load import check_filled, load_weights
from pipeline.errors import CheckpointError, ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import ReductionSpec
from pipeline.merging.unmerge import UNMERGES, unmerge
from pipeline.modes import set_modes
from pipeline.parts import METRIC, roles_of


@MODELS.register_module()
class DTEMBackbone(MergingViT, BaseModule):
    """`dict(type="DTEMBackbone", name=..., policy="dtem", reduction=8, out_indices=(2, 5, 8, 11))`: a
    MergingViT whose output is grids.

    Its state-dict keys are timm's (in a segmentor `backbone.` stands before them), so weights go from here to
    the rest of the pipeline and back. `set_reduction`, `count_macs` and `load_weights` take it as they take
    any MergingViT.
    """

    def __init__(
        self,
        name: str,
        *,
        policy: str = "none",
        reduction: ReductionSpec = 0,
        out_indices: int | Sequence[int] = -1,
        final_norm: bool = True,
        unmerge: str = "residual",
        frozen: bool = False,
        pretrained: bool = False,
        weights: str | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        img_size: int | tuple[int, int] | None = None,
        proportional_attention: str = "always",
        grad_checkpointing: bool = False,
        drop_path: float = 0.0,
        timm_options: dict[str, Any] | None = None,
        **policy_options: Any,
    ):
        """The options of `build_backbone`, and:

        out_indices: blocks whose output is returned, in this order; -1 is the last. final_norm: the last
        block's output goes through the ViT's last norm. unmerge: see `pipeline.merging.unmerge`. frozen:
        nothing but the metric embeddings learns. weights: a file or run folder, loaded now, as those of
        `pretrained` are; init_cfg=dict(type="Pretrained", checkpoint=FILE) loads it when mmengine asks for
        initial weights. Raises ConfigError, CheckpointError.
        """
        vit = create_vit(
            name,
            pretrained=_flag(pretrained),
            img_size=img_size,
            drop_path=drop_path,
            timm_options=timm_options,
        )
        super().__init__(
            vit,
            POLICIES.build(policy, **policy_options),
            reduction,
            proportional_attention=proportional_attention,
            grad_checkpointing=grad_checkpointing,
        )
        if unmerge not in UNMERGES:
            raise ConfigError(f"unmerge is '{unmerge}'; give one of {', '.join(UNMERGES)}")
        self.out_indices = _blocks([out_indices] if isinstance(out_indices, int) else out_indices, self.depth)
        self.final_norm, self.unmerge, self.frozen = final_norm, unmerge, frozen
        self._initial = _file_of(init_cfg)
        if sum(map(bool, (pretrained, weights, self._initial))) > 1:
            raise ConfigError(
                "pretrained, weights and init_cfg each say where the weights come from; give one of them"
            )
        roles = roles_of(self)
        for parameter_name, parameter in self.named_parameters():
            parameter.requires_grad_(not frozen or roles[parameter_name].kind == METRIC)
        if weights is not None:
            self._load(weights)

    def init_weights(self) -> None:
        """Loads the file of init_cfg, if there is one. mmengine's Runner calls it before it trains."""
        if self._initial is not None and not self.is_init:
            self._load(self._initial)
        self.is_init = True

    def train(self, mode: bool = True) -> "DTEMBackbone":
        """Sets the mode. In a frozen backbone only the metric embeddings are in training mode: drop path and
        dropout do not act."""
        super().train(mode)
        if mode and self.frozen:
            set_modes(self, {METRIC})
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """images [B, 3, H, W] -> [B, C, ceil(H / patch), ceil(W / patch)] for each of out_indices.

        Where H or W does not divide by the patch, zeros (the mean colour) are added at the right and below.
        """
        (height, width), (patch_h, patch_w) = images.shape[-2:], self.patch_size
        images = nn.functional.pad(images, (0, -width % patch_w, 0, -height % patch_h))
        taps = sorted(set(self.out_indices))
        output = super().forward(images, taps=taps, unmerge=self.unmerge)
        states = dict(zip(taps, output.taps, strict=True))
        if self.final_norm:
            states[self.depth - 1] = output.final
        return tuple(unmerge(states[i]) for i in self.out_indices)

    def _load(self, weights: str) -> None:
        report = load_weights(self, read_state_dict(weights))
        check_filled(self, report.sources, weights)
        print_log(f"{weights}: {report}", logger="current")
        roles = roles_of(self)
        lacking = [name for name in report.missing if roles[name].kind != METRIC]
        if lacking and self.frozen:
            raise CheckpointError(
                f"{weights} has no {lacking[0]} ({len(lacking)} tensors in all), which frozen=True "
                "would leave random"
            )


def _blocks(indices: Sequence[int], depth: int) -> tuple[int, ...]:
    """The numbers of the blocks, from 0; a negative index counts from the end. Raises ConfigError."""
    if not indices:
        raise ConfigError("out_indices is empty; give the blocks whose output the head reads")
    for index in indices:
        if not -depth <= index < depth:
            raise ConfigError(
                f"out_indices has {index}, but the backbone has {depth} blocks; give {-depth} to {depth - 1}"
            )
    return tuple(index % depth for index in indices)


def _flag(pretrained: Any) -> bool:
    """The flag. Raises ConfigError for a file: mmseg's segmentors hand `model.pretrained`, a file for their
    own ViT, down to the backbone."""
    if not isinstance(pretrained, bool):
        raise ConfigError(
            f"pretrained is '{pretrained}'; it is true (timm's weights) or false. A stock config has "
            "model.pretrained, weights of its own "
            "backbone: set model.pretrained=None, and give backbone.pretrained=True or backbone.weights=FILE"
        )
    return pretrained


def _file_of(init_cfg: Mapping[str, Any] | None) -> str | None:
    """The file that mmengine's Pretrained names. Raises ConfigError for any other initialisation, as timm
    draws the weights."""
    if init_cfg is None:
        return None
    is_pretrained = isinstance(init_cfg, Mapping) and init_cfg.get("type") == "Pretrained"
    if not is_pretrained or set(init_cfg) != {"type", "checkpoint"}:
        raise ConfigError(
            f"init_cfg is {init_cfg}; give dict(type='Pretrained', checkpoint=FILE), or nothing: timm "
            "draws the weights"
        )
    if "://" in init_cfg["checkpoint"]:
        raise ConfigError(f"init_cfg.checkpoint is {init_cfg['checkpoint']}; download it and give the file")
    return init_cfg["checkpoint"]
