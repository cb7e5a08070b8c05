"""The softmaxes of DTEM's relaxed merge alone, forward and backward: from scores to the shares of pairs, and
from the gradient of these to that of the scores. Against a plain loop by autograd, and against the loop of
the authors' release, which sorts whole rows and returns shares of all pairs.

    python benchmarks/soft_assignment.py --peer dtem=DTEM/deit.py
    python benchmarks/soft_assignment.py --peer dtem=DTEM/deit.py --device cuda --batches 128,512
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from contestants import unmerged
from floor import Floor, floor_of, shares
from measure import MIB, comparison, in_turns, peak_added
from options import speed_arguments
from peer_paths import add_peers
from peers import release, working
from record import write_record
from torch import Tensor

from pipeline.merging.soft import relaxed_top_r

CANDIDATES, TAU = 3, 0.1
Shares = Callable[[Tensor], Tensor]


def main() -> None:
    parser = speed_arguments(__doc__, "soft_assignment", batches=(1, 32, 128), precisions=False)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument(
        "--sources", type=int, default=98, help="and destinations (default 98, of 197 tokens)"
    )
    add_peers(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    floor = floor_of(args.device, torch.float32)
    results = (result for batch in args.batches for result in compared(args, batch, floor))
    claim = (
        f"shares of {args.sources} x {args.sources} scores, r = {args.r}, {CANDIDATES} candidates, forward "
        f"and backward, fp32, {args.device.type}: ours over others'"
    )
    write_record(args.record, claim, results)


def compared(args: argparse.Namespace, batch: int, floor: Floor) -> Iterator[dict[str, Any]]:
    size = batch, args.sources, args.sources
    scores = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * 0.2).to(args.device)
    ways: dict[str, Callable[[], Shares]] = {
        "ours": partial(ours, args.r),
        "plain loop": partial(plain_loop, args.r),
    }
    if "dtem" in args.peer:
        ways["release"] = partial(release_loop, args.peer["dtem"], args.r)
    scores.requires_grad_()
    builds = {name: partial(run_of, way, scores) for name, way in ways.items()}
    runs = working(builds, others=["release"])
    seconds = in_turns(runs, args.repeats, warmup=3, budget=args.budget)
    peaks = {name: round(peak_added(run, args.device) / MIB, 2) for name, run in runs.items()}
    nbytes = 2 * scores.numel() * scores.element_size()  # the scores, and their gradient
    for peer in list(runs)[1:]:
        result = comparison(
            f"seconds over the {peer}'s, batch {batch}, r = {args.r}", seconds["ours"], seconds[peer]
        )
        shares(result, floor, seconds["ours"], nbytes=nbytes)
        yield result | {"peak_mib": {"ours": peaks["ours"], "peer": peaks[peer]}}


def ours(r: int) -> Shares:
    return lambda scores: relaxed_top_r(scores, r, candidates=CANDIDATES, tau1=TAU, tau2=TAU).share


def plain_loop(r: int) -> Shares:
    """As the paper writes it, on the candidates alone."""

    def shares(scores: Tensor) -> Tensor:
        logits = scores.topk(CANDIDATES, dim=-1).values / TAU
        total = torch.zeros_like(logits)
        for _ in range(r):
            picked = (logits / TAU).flatten(1).softmax(dim=-1).view_as(logits)
            total = total + picked
            left = 1 - picked.sum(dim=-1, keepdim=True)
            logits = logits + left.clamp(min=torch.finfo(torch.float32).eps).log()
        return total / total.detach().sum(dim=-1, keepdim=True).clamp(min=1.0)

    return shares


def release_loop(path: str, r: int) -> Shares:
    warnings.filterwarnings("ignore", message=".*autocast")  # its way to switch autocast off
    block: Any = release(unmerged("deit_tiny_patch16_224"), path, r=r).get_submodule("blocks.0")
    return lambda scores: block._select(scores, r)[0]


def run_of(way: Callable[[], Shares], scores: Tensor) -> Callable[[], Tensor]:
    return there_and_back(way(), scores)


def there_and_back(way: Shares, scores: Tensor) -> Callable[[], Tensor]:
    """One call computes shares, and the gradient of the scores from a fixed one of these."""
    of_shares = torch.randn(way(scores).shape, generator=torch.Generator().manual_seed(1)).to(scores)
    return lambda: torch.autograd.grad(way(scores), scores, of_shares)[0]


if __name__ == "__main__":
    main()
