"""What the merges of a model cost: all that chooses and moves tokens, over the time of the blocks in which it
happens.

    python benchmarks/merge_share.py
    python benchmarks/merge_share.py --device cuda --precision bf16 --ways graphs --batches 1,64,256
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from contestants import ours, unmerged
from floor import Floor, floor_of, shares
from measure import MIB, comparison, graphed, in_turns, peak_added
from options import PRECISIONS, place, random_images, speed_arguments, words
from record import write_record

from pipeline.backbone import block as blocks
from pipeline.backbone.block import MergingBlock
from pipeline.backbone.vit import MergingViT
from pipeline.merging.evidence import Evidence
from pipeline.merging.policy import merge
from pipeline.token_state import TokenState

WAYS = {"eager": "", "graphs": ", CUDA graphs"}
"""How both run -> what names say of it."""
Call = Callable[[], object]


@dataclass
class Merged:
    """A block of a forward pass, and its merge. given: what its Evidence is made of."""

    block: MergingBlock
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    state: TokenState | None = None
    r: int = 0

    def whole(self) -> TokenState:
        return self.block(*self.inputs, **self.options)

    def merge(self) -> TokenState:
        assert self.state is not None
        (arguments, options), policy = self.given, self.block.policy
        return merge(policy, Evidence(*arguments, **options), self.state, self.r, relaxed=False)

    @property
    def moved(self) -> int:
        """Bytes that any merge reads and writes: the tokens before it and behind it."""
        assert self.state is not None
        batch, num_tokens, channels = self.state.tokens.shape
        return batch * (2 * num_tokens - self.r) * channels * self.state.tokens.element_size()


def main() -> None:
    parser = speed_arguments(__doc__, "merge_share", batches=(1, 16, 64))
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--r", type=int, default=16, help="tokens that each block merges")
    parser.add_argument("--policies", type=words, default=["dtem", "tome"])
    parser.add_argument(
        "--ways", type=words, default=["eager"], help=f"of {','.join(WAYS)}; graphs are CUDA's"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    how = "".join(WAYS[way] for way in args.ways)
    claim = (
        f"{args.model}, r = {args.r}, {place(args)}{how}: seconds of all merges over those of their blocks"
    )
    write_record(args.record, claim, measured(args))


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    floor, base = floor_of(args.device, PRECISIONS[args.precision]), unmerged(args.model)
    for policy, batch in product(args.policies, args.batches):
        model = ours(base, args.model, policy=policy, r=args.r).to(args.device).eval()
        for way in args.ways:
            name = f"{policy}, batch {batch}, {place(args)}{WAYS[way]}: seconds of the merges over the blocks"
            yield compare(name, model.backbone, args, batch, way, floor)


@torch.inference_mode()
def compare(
    name: str, backbone: MergingViT, args: argparse.Namespace, batch: int, way: str, floor: Floor
) -> dict[str, Any]:
    dtype = PRECISIONS[args.precision]
    with torch.autocast(args.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
        found = passed(backbone, random_images(batch, args.device))
        runs = {"merges": one_by_one([each.merge for each in found])}
        runs["blocks"] = one_by_one([each.whole for each in found])
        if way == "graphs":
            runs = {name: graphed(run) for name, run in runs.items()}
        seconds = in_turns(runs, args.repeats, warmup=2, budget=args.budget)
        result = comparison(name, seconds["merges"], seconds["blocks"])
        shares(result, floor, seconds["merges"], nbytes=sum(each.moved for each in found))
        if way == "eager":
            peaks = {run: round(peak_added(call, args.device) / MIB, 1) for run, call in runs.items()}
            result["peak_mib"] = {"ours": peaks["merges"], "peer": peaks["blocks"]}
    return result


def passed(backbone: MergingViT, images: torch.Tensor) -> list[Merged]:
    """The blocks that merge in a forward pass, with what came to them."""
    found: list[Merged] = []

    def enters(block: torch.nn.Module, inputs: Any, options: Any) -> None:
        assert isinstance(block, MergingBlock)
        found.append(Merged(block, inputs, options))

    def evidence(*arguments: Any, **options: Any) -> Evidence:
        found[-1].given = arguments, options
        return Evidence(*arguments, **options)

    def merging(policy: Any, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> TokenState:
        found[-1].state, found[-1].r = state, r
        return merge(policy, evidence, state, r, relaxed=relaxed)

    hooks = [
        part.register_forward_pre_hook(enters, with_kwargs=True)
        for part in backbone.modules()
        if isinstance(part, MergingBlock)
    ]
    with patch.object(blocks, "Evidence", evidence), patch.object(blocks, "merge", merging):
        backbone(images)
    for hook in hooks:
        hook.remove()
    return [each for each in found if each.r > 0]


def one_by_one(calls: Sequence[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run


if __name__ == "__main__":
    main()
