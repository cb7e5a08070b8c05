"""docs/models.md: which of timm's models merge, found by trying each at a tiny size.

`python tests/helpers/models_table.py` tries all and writes the page's table (10 minutes); it needs the extra
`onnx` and onnxruntime. tests/docs/test_models_page.py compares.
"""

import copy
import re
import tempfile
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import is_model_in_modules
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import dtem
from pipeline.backbone.build import create_vit
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.patching.patch import obstacle_in
from pipeline.errors import ConfigError
from pipeline.merging.schedule import resolve_schedule
from pipeline.merging.unmerge import slots, unmerge_state

PAGE = Path(__file__).parents[2] / "docs/models.md"
BEGIN, END = "<!-- made by tests/helpers/models_table.py -->", "<!-- end -->"
MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "naflexvit")
CLASSES = (VisionTransformer, Eva, NaFlexVit)
SIZES: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}
CHECKS = ("r = 0", "merges", "unmerges", "compiles", "exports", "ONNX")
ENOUGH = 0.95
"""Share of the architectures of VisionTransformer and of Eva that have to merge."""


@cache
def architectures() -> tuple[str, ...]:
    """timm's names in the modules that have our classes, without tags."""
    return tuple(name for name in timm.list_models() if is_model_in_modules(name, MODULES))


def tiny(name: str) -> nn.Module:
    """The architecture with few channels and blocks, and random weights everywhere."""
    torch.manual_seed(0)
    side = {} if "naflex" in name else {"img_size": images(name).shape[-1]}
    model = timm.create_model(name, num_classes=3, **side, **_sizes(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def _sizes(name: str) -> dict[str, Any]:
    """Sizes that the architecture takes. Some have a network before the patches, or heads of other counts."""
    own = {"num_kv_heads": 1} if "sapiens2" in name else {}
    return SIZES | own | ({"embed_dim": 768, "num_heads": 12} if "mci" in name else {})


def _is_hybrid(name: str) -> bool:
    return any(part in name for part in ("_r26", "_r50", "resnet", "mci"))


def images(name: str, count: int = 2) -> Tensor:
    """Four patches a side, or what gives a hybrid as many tokens."""
    patch = re.search(r"patch(\d+)", name)
    side = 128 if _is_hybrid(name) else 4 * int(patch[1]) if patch else 64
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def kind_of(model: nn.Module) -> tuple[str, str, str]:
    """Class, what its blocks are, and how it pools: a row of the table."""
    block = next(iter(model.get_submodule("blocks").children()))
    attn = getattr(block, "attn", None)
    parts = [type(block).__name__] + ([f"with {type(attn).__name__}"] if attn is not None else [])
    rope = getattr(model, "rope", None)
    parts += [type(rope).__name__] if rope is not None else []
    embed = getattr(model, "patch_embed", None)
    parts += [type(embed).__name__] if embed is not None and type(embed) is not PatchEmbed else []
    return type(model).__name__, ", ".join(parts), str(model.global_pool)


def rows(names: Iterable[str] | None = None) -> dict[tuple[str, str, str], list[str]]:
    """Row -> its architectures."""
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name in architectures() if names is None else names:
        model = tiny(name)
        if isinstance(model, CLASSES):
            found[kind_of(model)].append(name)
    order = {kind.__name__: number for number, kind in enumerate(CLASSES)}
    return dict(sorted(found.items(), key=lambda row: (order.get(row[0][0], 0.5), -len(row[1]), row[0])))


def obstacle(name: str) -> str | None:
    return obstacle_in(tiny(name))


def facts(name: str) -> dict[str, bool]:
    """What holds of every architecture, and is quick to see."""
    model, x = tiny(name), images(name)
    with torch.no_grad():
        before = [model(x), model.forward_features(x)]
        dtem.patch(model, "dtem", reduction=0)
        after = [model(x), model.forward_features(x)]
        same = all(torch.allclose(*pair, atol=1e-5, rtol=1e-5) for pair in zip(after, before, strict=True))
        model.reduction = 3
        state = model.encode(x).final
        start = state.grid[0] * state.grid[1] + state.num_prefix
        left = start - sum(resolve_schedule(3, 2, start, state.num_prefix))
        merged = state.tokens.shape[1] == left < start and bool((state.size.sum(dim=1) == start).all())
        by_slot = torch.stack([own[where] for own, where in zip(state.tokens, slots(state), strict=True)])
        back = (
            torch.equal(unmerge_state(state), by_slot) and model.forward_features(x).shape == before[1].shape
        )
        dtem.unpatch(model)
        same = same and torch.equal(model(x), before[0])
    return {"r = 0": same, "merges": merged, "unmerges": back}


def programs(name: str) -> dict[str, bool]:
    """What holds of an architecture and takes time: whole graphs of torch, and a program of onnxruntime."""
    model, x = dtem.patch(tiny(name), "dtem", reduction=3), clear_images(name)
    with torch.no_grad():
        expected = model(x)
        torch._dynamo.reset()
        whole = torch.compile(model, fullgraph=True, backend="eager")
        batch = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        return {
            "compiles": _same(lambda: whole(x), expected),
            "exports": _same(
                lambda: torch.export.export(model, (x,), dynamic_shapes=batch).module()(x[:1]), expected[:1]
            ),
            "ONNX": _same(lambda: _by_onnxruntime(model, x, batch), expected),
        }


def clear_images(name: str) -> Tensor:
    """Two images whose merges do not hang on rounding: float32 and float64 agree."""
    single, x = dtem.patch(tiny(name), "dtem", reduction=3), images(name, 12)
    double = copy.deepcopy(single).double()
    with torch.no_grad():
        gap = (single(x) - double(x.double())).abs().amax(dim=-1)
    return x[gap.argsort()[:2].sort().values]


def _same(run: Callable[[], Tensor], expected: Tensor) -> bool:
    try:
        return torch.allclose(run(), expected, atol=1e-3, rtol=1e-3)
    except Exception as err:  # whatever a compiler raises is an answer
        warnings.warn(f"{type(err).__name__}: {err}", stacklevel=2)
        return False


def _by_onnxruntime(model: MergingModel, x: Tensor, batch: Any) -> Tensor:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        names = {"input_names": ["images"], "output_names": ["logits"]}
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=batch, verbose=False, **names)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def trains(name: str) -> bool:
    """Whether `build_backbone` takes it, for the tasks of the pipeline."""
    try:
        create_vit(name, timm_options=_sizes(name))
    except ConfigError:
        return False
    return True


def table() -> str:
    """The part of the page between its marks: a row for each kind, then the names of each."""
    lines = ["| class | blocks | pools by | architectures | tasks | " + " | ".join(CHECKS) + " |"]
    lines += ["|" + "---|" * (5 + len(CHECKS))]
    names_of, known = [], rows()
    for (library, blocks, pooled), names in known.items():
        reason = obstacle(names[0])
        found = {} if reason else {**_all(names), **programs(names[0])}
        marks = [_mark(found.get(check)) for check in CHECKS]
        tasks = _mark(None if reason else trains(names[0]))
        lines.append(f"| {library} | {blocks} | {pooled} | {len(names)} | {tasks} | {' | '.join(marks)} |")
        print(lines[-1], flush=True)
        refused = f" Refused: {reason}." if reason else ""
        names_of.append(_wrapped(f"* {library}, {blocks}, {pooled}: {_listed(names)}{refused}"))
    return "\n".join([*_shares(known), "", *lines, "", *names_of])


def _all(names: list[str]) -> dict[str, bool]:
    each = [facts(name) for name in names]
    return {check: all(own[check] for own in each) for check in each[0]}


def _shares(known: dict[tuple[str, str, str], list[str]]) -> list[str]:
    lines = []
    for library in CLASSES:
        names = [name for row in known.values() for name in row if isinstance(tiny(name), library)]
        merging = [name for name in names if obstacle(name) is None]
        lines.append(f"* `{library.__name__}`: {len(merging)} of {len(names)} architectures merge.")
    return [f"timm {timm.__version__}:", "", *lines]


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 108, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _mark(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) + "."


if __name__ == "__main__":
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
