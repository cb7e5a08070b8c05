"""Attention one step ahead of a merge (MCTF), two ways: by a fused kernel with values that groups share, and
by the matrix of attention whose columns are summed and whose rows are averaged. Each with the attention that
the choice reads, for the same merge.

    python benchmarks/one_step_ahead.py
    python benchmarks/one_step_ahead.py --device cuda --precision bf16 --batches 16,128
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from measure import MIB, comparison, in_turns, peak_added
from options import PRECISIONS, place, speed_arguments
from record import write_record
from torch import Tensor

from pipeline.backbone.attention import Ahead, Place
from pipeline.merging.apply import replay
from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import match_both_ways, parity_split
from pipeline.merging.rows import add_rows, take_rows
from pipeline.token_state import Assignment, TokenState

DIM, R = 64, 16
Parts = tuple[Tensor, Tensor, Tensor, Tensor, Assignment]
"""q, k [B, H, M, D], values of the merged tokens [B, H, K, D], sizes [B, M], and the merge."""


def main() -> None:
    parser = speed_arguments(__doc__, "one_step_ahead_cpu", batches=(1, 16, 64))
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=197)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    claim = (
        f"attention received, and attention one step ahead of a merge, {args.heads} heads of {DIM}, "
        f"{args.tokens} tokens, r = {R}, {place(args)}: a fused kernel over the matrix of attention"
    )
    write_record(args.record, claim, (one for batch in args.batches for one in compared(args, batch)))


def compared(args: argparse.Namespace, batch: int) -> Iterator[dict[str, Any]]:
    parts = drawn(args, batch)
    for what, call in {"forward": forward, "forward and backward": there_and_back}.items():
        runs = {name: partial(call, way, parts) for name, way in (("ours", fused), ("matrix", by_matrix))}
        seconds = in_turns(runs, args.repeats, warmup=3, budget=args.budget)
        peaks = {name: round(peak_added(run, args.device) / MIB, 2) for name, run in runs.items()}
        name = f"seconds over the matrix's, {what}, batch {batch}"
        yield comparison(name, seconds["ours"], seconds["matrix"]) | {"peak_mib": peaks}


def drawn(args: argparse.Namespace, batch: int) -> Parts:
    """The same in each call, but for the precision."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    q, k, v = draw(3, batch, args.heads, args.tokens, DIM).to(args.device, PRECISIONS[args.precision])
    state = TokenState.start(draw(batch, args.tokens, 1).to(args.device), (1, args.tokens - 1), 1)
    split = parity_split(state)
    scores = draw(batch, *split.counts).to(args.device)
    return q, k, v[:, :, R:].contiguous(), state.size, match_both_ways(state, scores, split, R)


def fused(q: Tensor, k: Tensor, v: Tensor, size: Tensor, merge: Assignment) -> tuple[Tensor, Tensor]:
    """Attention received [B, H, M], and the output [B, H, K, D]."""
    received = Evidence(q, q, k, scale=DIM**-0.5, size=size).received
    return received, Ahead(q, k, Place(size), size, merge).mix(v, scale=DIM**-0.5, dropout=0.0)


def by_matrix(q: Tensor, k: Tensor, v: Tensor, size: Tensor, merge: Assignment) -> tuple[Tensor, Tensor]:
    """The same, with the matrix in memory."""
    weights = (q @ k.mT * DIM**-0.5 + size.log()[:, None, None].to(q.dtype)).softmax(dim=-1)
    received = weights.detach().float().sum(dim=2)
    columns = weights.permute(0, 3, 1, 2)  # [B, M keys, H, M queries]
    summed = add_rows(take_rows(columns, merge.keep), merge.slot, take_rows(columns, merge.source))
    rows = replay(summed.permute(0, 3, 2, 1), (merge,), size)  # [B, K queries, H, K keys]
    return received, rows.transpose(1, 2) @ v


def forward(way: Callable[..., tuple[Tensor, Tensor]], parts: Parts) -> Tensor:
    with torch.no_grad():
        return way(*parts)[1]


def there_and_back(way: Callable[..., tuple[Tensor, Tensor]], parts: Parts) -> tuple[Tensor, ...]:
    leaves = [part.detach().requires_grad_() for part in parts[:3]]
    output = way(*leaves, *parts[3:])[1]
    return torch.autograd.grad(output, leaves, torch.ones_like(output))


if __name__ == "__main__":
    main()
