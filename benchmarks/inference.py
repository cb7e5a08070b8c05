"""Images per second of merged inference: ours over timm's unmerged model (with fused attention) and over
others' merged ones, at each batch size and reduction.

Beside a ratio stands what it is measured against: the ratio of MACs of timm's model, and the least time of
the device, by its own rate of matrix products (or by the weights and images that it has to read).

    python benchmarks/inference.py --peer dtem=DTEM/deit.py --peer tome=FOLDER --peer opentome=FOLDER
    python benchmarks/inference.py --batches 1,4 --r 0,1,2,4,8,13,16          # never slower than unmerged
    python benchmarks/inference.py --device cuda --precision bf16 --graphs --batches 1,64,256
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from contestants import inference, ours, unmerged
from floor import Floor, floor_of, shares
from measure import MIB, comparison, in_turns, peak_added
from options import PRECISIONS, numbers, place, random_images, speed_arguments, words
from peer_paths import add_peers
from peers import peer_models, working
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
Call = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """A comparison: how many images and where."""

    images: Tensor
    dtype: torch.dtype
    compiled: bool
    graphs: bool
    floor: Floor
    where: str

    @property
    def name(self) -> str:
        how = [", compiled"] * self.compiled + [", CUDA graphs"] * self.graphs
        return f"batch {len(self.images)}, {{r}}, {self.where}{''.join(how)}"


def main() -> None:
    parser = speed_arguments(__doc__, "inference", batches=(1, 4, 16, 64))
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument(
        "--r", type=numbers, default=[16], help="tokens that each block merges, such as 0,8,16"
    )
    parser.add_argument("--policies", type=words, default=["dtem", "tome"], help="ours (default dtem,tome)")
    parser.add_argument("--compile", type=words, default=["none"], help="none, on or none,on: timm and ours")
    parser.add_argument(
        "--graphs", action="store_true", help="timm and ours as CUDA graphs (with --device cuda)"
    )
    add_peers(parser)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    dtype = PRECISIONS[args.precision]
    floor = floor_of(args.device, dtype)
    base = unmerged(args.model)
    models = {r: contestants(base, args, r) for r in args.r}
    results = []
    for batch in args.batches:
        images = random_images(batch, args.device)
        for compiled in (kind == "on" for kind in args.compile):
            torch.compiler.reset()  # a graph for each size, and no limit on their number
            graphs = args.graphs and args.device.type == "cuda"
            setting = Setting(images, dtype, compiled, graphs, floor, place(args))
            for r in args.r:
                results += compare(models[r], setting, args, r)
    sizes, reductions = (", ".join(map(str, values)) for values in (args.batches, args.r))
    how = [", compiled"] * ("on" in args.compile) + [", CUDA graphs"] * args.graphs
    claim = (
        f"{args.model}, batch {sizes}, r = {reductions}, {place(args)}{''.join(how)}: images/s of ours over "
        "the peer's"
    )
    write_record(args.record, claim, results)


def contestants(base: nn.Module, args: argparse.Namespace, r: int) -> dict[str, nn.Module]:
    models = {"timm": base} | peer_models(base, args.peer, r=r)
    weights = {"dtem": models.get("release", base)}
    for policy in args.policies:
        models[f"ours_{policy}"] = ours(weights.get(policy, base), args.model, policy=policy, r=r)
    return models


def compare(
    models: Mapping[str, nn.Module], setting: Setting, args: argparse.Namespace, r: int
) -> list[dict[str, Any]]:
    calls = working({name: call_of(name, model, setting) for name, model in models.items()})
    seconds = in_turns(calls, args.repeats, warmup=2, budget=args.budget)
    # the profiler that sees memory on the CPU does not see into compiled code
    measured = not setting.compiled and not setting.graphs
    peaks = {name: peak_added(call, setting.images.device) / MIB for name, call in calls.items() if measured}
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
        if measured:
            result["peak_mib"] = {
                side: round(peaks[who], 1) for side, who in (("ours", mine), ("peer", peer))
            }
        results.append(result)
    return results


def call_of(name: str, model: nn.Module, setting: Setting) -> Call:
    own = name == "timm" or name.startswith("ours")
    call: Call = inference(model, setting.images, setting.dtype, compiled=setting.compiled and own)
    return graphed(call) if setting.graphs and own else call


def graphed(call: Call) -> Call:
    """The call as a CUDA graph that is replayed: nothing of it is launched by the host."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def macs_of(model: nn.Module | None, name: str) -> int:
    """MACs of an image; None: of the model `name` without merging."""
    return count_macs(model.backbone if isinstance(model, MultiTaskModel) else build_backbone(name)).total


def bytes_of(model: nn.Module, setting: Setting) -> int:
    """Bytes that every inference reads: weights and images."""
    tensors = [*model.parameters(), setting.images]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


if __name__ == "__main__":
    main()
