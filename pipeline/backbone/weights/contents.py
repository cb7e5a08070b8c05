"""Which state dict of a training script's file is meant: the model's, or the average of its weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from pipeline.backbone.weights.folders import JOIN_ZERO
from pipeline.backbone.weights.pickled import Placeholder
from pipeline.errors import CheckpointError

Prefer = Literal["ema", "model"]
PREFER: tuple[Prefer, ...] = get_args(Prefer)

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "teacher", "ema")
"""Names of averaged weights: of timm, DeiT, others' trainers, DINO and DINOv2."""
TRAINED = ("state_dict", "model", "model_state_dict", "student", "net", "module")
"""Names of the weights as they were trained: of timm, Lightning, mmengine, MAE and DeiT, of many scripts, of
DINO, and of DeepSpeed."""
_SWAPPED = {"current_model_state": "state_dict", "ema_state_dict": "state_dict"}
"""Name of the weights as they were trained -> that of their average, in files of Lightning's WeightAveraging
and of mmengine's EMAHook, which put the average where a model's weights are looked for."""
_COUNTERS = ("n_averaged", "steps")
"""Counters of averaged models, of torch and of mmengine."""
_FACTS = ("arch", "epoch", "global_step", "step", "iter")
_DEEPEST = 3


@dataclass(frozen=True)
class Contents:
    """A state dict that was chosen among what a file holds."""

    tensors: dict[str, Tensor]
    place: str
    """Where it lies in the file, `state_dict_ema`; empty where the file is the state dict."""
    averaged: bool
    left: tuple[str, ...] = ()
    """Names in the file that were not taken."""
    facts: tuple[tuple[str, str | int], ...] = ()
    """What the file says of its model, such as arch and epoch."""

    def __str__(self) -> str:
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        what = (
            f"{len(self.tensors)} tensors, {numbers} numbers{', averaged weights' if self.averaged else ''}"
        )
        facts = "".join(f"; {name} {value}" for name, value in self.facts)
        left = f"; left out: {', '.join(self.left)}" if self.left else ""
        return f"took {self.place or 'the state dict'} ({what}){facts}{left}"


def chosen(content: object, prefer: Prefer, source: str) -> Contents:
    """The state dict in the content of a file. prefer: which one, where there are both. Raises
    CheckpointError for a content without one, which names `source`."""
    names: list[str] = []
    averaged, left, facts, inner = False, [], {}, content
    for _ in range(_DEEPEST):
        if not isinstance(inner, Mapping) or (found := _best(inner, prefer)) is None:
            break
        name, is_average = found
        facts |= _facts(inner)
        left += [".".join([*names, str(other)]) for other in inner if other != name]
        names, averaged, inner = [*names, name], averaged or is_average, inner[name]
    tensors = _tensors(inner)
    if tensors is None:
        raise CheckpointError(f"{source} is not a state dict of tensors, and holds none: {_inside(content)}")
    if sum(tensor.numel() == 0 for tensor in tensors.values()) > len(tensors) / 2:
        raise CheckpointError(f"{source} has empty tensors: of ZeRO 3, {JOIN_ZERO.format('ITS_FOLDER')}")
    left += [str(key) for key in inner if key not in tensors] if isinstance(inner, Mapping) else []
    return Contents(tensors, ".".join(names), averaged, tuple(left), tuple(facts.items()))


def _best(content: Mapping[Any, Any], prefer: Prefer) -> tuple[str, bool] | None:
    """The name of the state dict that is meant, and whether it is an average."""
    both = dict(_named(content))
    for name, is_average in both.items():
        if is_average == (prefer == "ema"):
            return name, is_average
    return next(iter(both.items()), None)


def _named(content: Mapping[Any, Any]) -> Iterator[tuple[str, bool]]:
    """Yields the names of state dicts, and whether each is an average."""
    for trained, average in _SWAPPED.items():
        if _is_dict(content, trained) and _is_dict(content, average) and _is_swapped(content, trained):
            yield from ((average, True), (trained, False))
            return
    yield from ((name, True) for name in AVERAGED if _is_dict(content, name))
    yield from ((name, False) for name in TRAINED if _is_dict(content, name))


def _is_swapped(content: Mapping[Any, Any], trained: str) -> bool:
    """Other trainers than mmengine's leave the average under `ema_state_dict`."""
    return trained != "ema_state_dict" or "mmengine_version" in (content.get("meta") or {})


def _is_dict(content: Mapping[Any, Any], name: str) -> bool:
    return isinstance(content.get(name), Mapping) and bool(content[name])


def _tensors(content: object) -> dict[str, Tensor] | None:
    """The tensors of a state dict; None for what is none: where less than half of the values are tensors."""
    if not isinstance(content, Mapping):
        return None
    found = {
        key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)
    }
    tensors = {key: value for key, value in found.items() if key not in _COUNTERS}
    return tensors if tensors and 2 * len(found) >= len(content) else None


def _facts(content: Mapping[Any, Any]) -> dict[str, str | int]:
    return {
        name: value if isinstance(value, int) else value[:80]
        for name in _FACTS
        if isinstance(value := content.get(name), str | int)
    }


def _inside(content: object) -> str:
    """What a content is, in a few words."""
    if isinstance(content, Placeholder):
        return "it is a whole object; where it was made, save its model.state_dict()"
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}"
    return ", ".join(f"{key!r:.40}" for key in list(content)[:6]) or "it is empty"
