"""MMSegmentation's necks and decode heads, built from its own config dicts.

B batch, K classes, h w cells of a head's logits.
"""

import copy
import logging
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.structures import PixelData
from mmengine.utils.dl_utils import mmcv_full_available
from mmseg.models import decode_heads, necks
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS, TASK_UTILS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from pipeline.engine import launched
from pipeline.errors import ConfigError
from pipeline.registry import unknown_name
from tasks.shared.options import fill_in

OF_MMDET = {"MaskFormerHead", "Mask2FormerHead"}
OPERATORS = {"CCHead": "CrissCrossAttention", "PSAHead": "PSAMask"}
"""Maps a head to the operator of mmcv that it needs, which has to be compiled."""
HEADS = OF_MMDET | {
    name for name in decode_heads.__all__ if issubclass(getattr(decode_heads, name), BaseDecodeHead)
}
NECKS = set(necks.__all__)
MISFITS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError)
"""Errors that mmseg's modules raise for options and features that do not fit them."""
PROBE = 4
"""Side of the features on which a new head is tried."""


def build_decode_head(
    spec: Mapping[str, Any], *, in_channels: Sequence[int], num_classes: int, field: str = "decode_head"
) -> BaseDecodeHead:
    """The head that mmseg builds from `spec` (which is not changed), with its starting weights.

    in_channels: channels of each feature that the head can read, which are the neck's if there is one.
    in_channels and num_classes are filled in where `spec` lacks them. field: name of the setting, for
    messages. Raises ConfigError for a head that cannot be built, does not fit the features, or needs what is
    not installed.
    """
    _check_spec(spec, field, HEADS)
    filled = _fill_head(spec, in_channels, num_classes, field)
    _refuse_unsupported(filled, field)
    head = _build(filled, field)
    assert isinstance(head, BaseDecodeHead), "others are refused above"
    with _trial(head, in_channels, field) as features:
        logits = head(features)
        if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[1] != num_classes:
            shape = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ConfigError(
                f"{field} {spec['type']} gives {shape} where logits [B, {num_classes}, h, w] are needed"
            )
        head_losses(head, logits, torch.zeros(1, PROBE, PROBE))
    return head


def build_neck(spec: Mapping[str, Any], in_channels: Sequence[int]) -> tuple[nn.Module, list[int]]:
    """The neck, and the channels of each of its features. Raises ConfigError, see `build_decode_head`."""
    _check_spec(spec, "neck", NECKS)
    filled = copy.deepcopy(dict(spec))
    pyramid = spec["type"] == "Feature2Pyramid"
    name, value = ("embed_dim", in_channels[0]) if pyramid else ("in_channels", list(in_channels))
    fill_in(filled, name, value, f"neck {spec['type']}: ", "here it is")
    neck = _build(filled, "neck")
    with _trial(neck, in_channels, "neck") as features:
        return neck, [feature.shape[1] for feature in neck(features)]


def head_losses(head: nn.Module, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The head's own losses under mmseg's names, and `acc_seg`, its accuracy in [0, 1]; all scalars. logits
    [B, K, h, w], mask uint8 [B, H, W].

    The accuracy of an ordinary head is counted here, because mmseg's makes the host wait for the device.
    """
    assert isinstance(head, BaseDecodeHead)
    label = mask.long()
    if type(head).loss_by_feat is not BaseDecodeHead.loss_by_feat:
        values = head.loss_by_feat(
            logits, [SegDataSample(gt_sem_seg=PixelData(data=one)) for one in label[:, None]]
        )
        return {name: value.mean() / (100 if name == "acc_seg" else 1) for name, value in values.items()}
    logits = resize(logits, size=label.shape[1:], mode="bilinear", align_corners=head.align_corners)
    weight = None if head.sampler is None else head.sampler.sample(logits, label[:, None])
    values = {}
    for loss in head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]:
        value = loss(logits, label, weight=weight, ignore_index=head.ignore_index).mean()
        values[loss.loss_name] = values.get(loss.loss_name, 0) + value
    counted = label != head.ignore_index
    hits = (logits.detach().argmax(dim=1) == label) & counted
    return values | {"acc_seg": hits.sum() / counted.sum().clamp(min=1)}


def _check_spec(spec: Any, field: str, known: Collection[str]) -> None:
    """Raises ConfigError for names that are not registered. mmseg would import a `type` with dots, and
    unpickle a file that a spec names; a config may do neither."""
    if not isinstance(spec, Mapping) or "type" not in spec:
        raise ConfigError(f"{field} is {spec!r}; give dict(type=..., ...) as MMSegmentation's configs do")
    if spec["type"] not in known:
        raise ConfigError(f"{field}: {unknown_name('type', spec['type'], known)}")
    registries = (MODELS, MODELS.parent, WEIGHT_INITIALIZERS, TASK_UTILS)
    registered = {name for registry in registries if registry is not None for name in registry.module_dict}
    for part in _parts(spec):
        if "type" in part and part["type"] not in registered:
            raise ConfigError(f"{field} {spec['type']}: {unknown_name('type', part['type'], registered)}")
        if "_scope_" in part:
            raise ConfigError(f"{field} {spec['type']}: _scope_ would import another package; leave it out")
        if part.get("type") == "Pretrained" or isinstance(part.get("class_weight"), str):
            raise ConfigError(
                f"{field} {spec['type']}: {dict(part)} reads a file; give a list of class weights, or "
                "backbone.weights"
            )


def _parts(spec: Any) -> Iterator[Mapping[str, Any]]:
    """Yields all dicts in a spec, and the spec itself."""
    if isinstance(spec, Mapping):
        yield spec
        spec = list(spec.values())
    for value in spec if isinstance(spec, list | tuple) else ():
        yield from _parts(value)


def _fill_head(
    spec: Mapping[str, Any], in_channels: Sequence[int], num_classes: int, field: str
) -> dict[str, Any]:
    filled, index = copy.deepcopy(dict(spec)), spec.get("in_index", -1)
    try:
        channels = [in_channels[i] for i in index] if isinstance(index, list | tuple) else in_channels[index]
    except IndexError:
        raise ConfigError(
            f"{field} {spec['type']}: in_index {index} is past the {len(in_channels)} features that it "
            "can read"
        ) from None
    for name, value in {"in_channels": channels, "num_classes": num_classes}.items():
        fill_in(filled, name, value, f"{field} {spec['type']}: ", "here it is")
    return filled


def _refuse_unsupported(spec: Mapping[str, Any], field: str) -> None:
    kind = spec["type"]
    with_runner = "train it with mmseg's own Runner and the backbone DTEMBackbone (docs/mmseg.md)"
    if kind in OF_MMDET:
        raise ConfigError(
            f"{field} {kind} needs mmdet, which this project does not install (docs/dependencies.md); "
            f"with it, {with_runner}"
        )
    if kind in OPERATORS and not mmcv_full_available():
        raise ConfigError(
            f"{field} {kind} needs mmcv's operator {OPERATORS[kind]}, which is not compiled here; build "
            "mmcv with MMCV_WITH_OPS=1"
        )
    if issubclass(getattr(decode_heads, kind), BaseCascadeDecodeHead):
        raise ConfigError(f"{field} {kind} refines the output of another head; {with_runner}")
    if spec.get("out_channels", spec["num_classes"]) != spec["num_classes"]:
        raise ConfigError(
            f"{field} {kind}: out_channels is {spec['out_channels']}; give one channel per class, or "
            "leave it out"
        )


def _build(spec: Mapping[str, Any], field: str) -> nn.Module:
    try:
        with warnings.catch_warnings(action="ignore"):
            module = MODELS.build(ConfigDict(spec, _scope_="mmseg"))
    except (*MISFITS, ImportError) as err:
        hint = (
            ""
            if "in_index" in spec or isinstance(err, TypeError)
            else "; a head that reads several features needs in_index, for instance [0, 1, 2, 3]"
        )
        raise ConfigError(f"{field} {spec['type']} cannot be built: {_reason(err)}{hint}") from err
    if hasattr(module, "init_weights"):
        with _quiet():
            module.init_weights()
    # on CPUs SyncBN runs in one process only
    return module if launched.cuda() else revert_sync_batchnorm(module)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences mmengine, which logs three lines for every parameter that it initialises."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _trial(module: nn.Module, in_channels: Sequence[int], field: str) -> Iterator[tuple[Tensor, ...]]:
    """Gives small features on which to try a module, which is in evaluation mode meanwhile. Raises
    ConfigError for what goes wrong with them."""
    module.eval()
    try:
        with torch.no_grad():
            yield tuple(torch.zeros(1, channels, PROBE, PROBE) for channels in in_channels)
    except MISFITS as err:
        shown = f"{len(in_channels)} features of {list(in_channels)} channels"
        raise ConfigError(f"{field} {type(module).__name__} does not take {shown}: {_reason(err)}") from err
    finally:
        module.train()


def _reason(err: Exception) -> str:
    """The message of an error, else the line that raised it: mmseg's assertions have no message."""
    return str(err) or str(traceback.extract_tb(err.__traceback__)[-1].line)
