"""Images per second of merged inference: ours over timm's unmerged model (with fused attention) and over
others' merged ones, at each batch size and reduction.

Beside a ratio stands what it is measured against: the ratio of MACs of timm's model, and the least time of
the device, by its own rate of matrix products (or by the weights and images that it has to read).

    python benchmarks/inference.py --peer dtem=DTEM/deit.py --peer tome=FOLDER --peer opentome=FOLDER
    python benchmarks/inference.py --batches 1,4 --r 0,1,2,4,8,13,16          # never slower than unmerged
    python benchmarks/inference.py --device cuda --precision bf16 --weights --ways eager,graphs --batches 64
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from contestants import inference, ours, unmerged
from floor import Floor, floor_of, shares
from measure import MIB, comparison, graphed, in_turns, peak_added
from options import PRECISIONS, numbers, place, random_images, speed_arguments, words
from peer_paths import add_peers
from peers import MODELS, peer_models, working
from record import write_record
from torch import Tensor, nn

from pipeline import build_backbone
from pipeline.backbone.macs import count_macs
from pipeline.model import MultiTaskModel

PAIRS = {
    "ours_dtem": ("timm", "release", "opentome_dtem"),
    "ours_tome": ("timm", "tome", "opentome_tome"),
}
"""Ours -> what it is compared with."""
WAYS = {"eager": "", "compiled": ", compiled", "graphs": ", CUDA graphs"}
"""How models run -> what names say of it. Peers' run eagerly, beside eager ones."""
Call = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """A comparison: how many images, and where. Weights have the dtype of the images; where `dtype` is
    another, it is that of autocast. way: of WAYS."""

    images: Tensor
    dtype: torch.dtype
    way: str
    floor: Floor
    where: str

    @property
    def name(self) -> str:
        return f"batch {len(self.images)}, {{r}}, {self.where}{WAYS[self.way]}"

    @property
    def shows_memory(self) -> bool:
        """On a CPU nothing sees into compiled code, and a graph has its memory before it is replayed."""
        return self.way == "eager" or (self.way == "compiled" and self.images.is_cuda)


def main() -> None:
    parser = speed_arguments(__doc__, "inference", batches=(1, 4, 16, 64))
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument(
        "--r", type=numbers, default=[16], help="tokens that each block merges, such as 0,8,16"
    )
    parser.add_argument("--policies", type=words, default=["dtem", "tome"], help="ours (default dtem,tome)")
    parser.add_argument(
        "--ways", type=words, default=["eager"], help=f"of timm and ours: {','.join(WAYS)}; graphs are CUDA's"
    )
    parser.add_argument(
        "--weights", action="store_true", help="have the precision too, as the images; without autocast"
    )
    add_peers(parser)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    sizes, reductions = (", ".join(map(str, values)) for values in (args.batches, args.r))
    how = "".join(WAYS[way] for way in args.ways)
    claim = (
        f"{args.model}, batch {sizes}, r = {reductions}, {where(args)}{how}: images/s of ours over the peer's"
    )
    write_record(args.record, claim, measured(args))


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    dtype = PRECISIONS[args.precision]
    floor = floor_of(args.device, dtype)
    base = unmerged(args.model)
    models = {r: contestants(base, args, r) for r in args.r}
    for batch, way in product(args.batches, args.ways):
        torch.compiler.reset()  # a graph for each size, and no limit on their number
        images = random_images(batch, args.device).to(dtype if args.weights else torch.float32)
        setting = Setting(images, dtype, way, floor, where(args))
        for r in args.r:
            yield from compare(models[r], setting, args, r)


def where(args: argparse.Namespace) -> str:
    return f"{place(args)}{', weights too' * args.weights}"


def contestants(base: nn.Module, args: argparse.Namespace, r: int) -> dict[str, nn.Module]:
    models = {"timm": base} | peer_models(base, args.peer, r=r)
    weights = {"dtem": models.get("release", base)}
    for policy in args.policies:
        models[f"ours_{policy}"] = ours(weights.get(policy, base), args.model, policy=policy, r=r)
    return models


def compare(
    models: Mapping[str, nn.Module], setting: Setting, args: argparse.Namespace, r: int
) -> list[dict[str, Any]]:
    builds = {
        name: partial(call_of, model, setting) for name, model in models.items() if takes(setting, name)
    }
    calls = working(builds, MODELS)
    seconds = in_turns(calls, args.repeats, warmup=2, budget=args.budget)
    watched = calls if setting.shows_memory else {}
    peaks = {name: peak_added(call, setting.images.device) / MIB for name, call in watched.items()}
    speed = {name: [len(setting.images) / s for s in times] for name, times in seconds.items()}
    macs = {name: macs_of(model, args.model) for name, model in models.items() if name.startswith("ours")}
    whole = macs_of(None, args.model)
    results = []
    for mine, peer in ((mine, peer) for mine, others in PAIRS.items() for peer in others):
        if mine not in speed or peer not in speed:
            continue
        name = f"{mine} vs {peer}, {setting.name.format(r=f'r = {r}')}"
        result = comparison(name, speed[mine], speed[peer])
        shares(
            result,
            setting.floor,
            seconds[mine],
            macs=macs[mine] * len(setting.images),
            nbytes=bytes_of(models[mine], setting),
            mac_ratio=whole / macs[mine] if peer == "timm" else None,
        )
        if peaks:
            result["peak_mib"] = {
                side: round(peaks[who], 1) for side, who in (("ours", mine), ("peer", peer))
            }
        results.append(result)
    return results


def takes(setting: Setting, name: str) -> bool:
    return setting.way == "eager" or name == "timm" or name.startswith("ours")


def call_of(model: nn.Module, setting: Setting) -> Call:
    cast = torch.float32 if setting.images.dtype == setting.dtype else setting.dtype  # float32: no autocast
    call = inference(model.to(setting.images.dtype), setting.images, cast, compiled=setting.way == "compiled")
    return graphed(call) if setting.way == "graphs" else call


def macs_of(model: nn.Module | None, name: str) -> int:
    """MACs of an image; None: of the model `name` without merging."""
    return count_macs(model.backbone if isinstance(model, MultiTaskModel) else build_backbone(name)).total


def bytes_of(model: nn.Module, setting: Setting) -> int:
    """Bytes that every inference reads: weights and images."""
    tensors = [*model.parameters(), setting.images]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


if __name__ == "__main__":
    main()
