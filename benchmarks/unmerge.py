"""What unmerging costs: in an encoder of segmentation, against the same without; and alone, against one
gather of as many rows, which every way has to make.

    python benchmarks/unmerge.py
    python benchmarks/unmerge.py --device cuda --precision bf16 --batches 1,16,64
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from encoders import WAYS, Case, gridded, measure_encoders
from floor import shares
from measure import MIB, comparison, in_turns, peak_added
from torch import Tensor

from pipeline import unmerge
from pipeline.merging.unmerge import slots
from pipeline.token_state import TokenState


def main() -> None:
    what = "seconds with unmerging over those without, and alone over one gather"
    measure_encoders(__doc__, "unmerge", what, [in_the_encoder, alone])


def in_the_encoder(case: Case) -> Iterator[dict[str, Any]]:
    args = case.args
    runs: dict[str, Callable[[], object]] = {how: gridded(case.encoding(case.schedule, how)) for how in WAYS}
    runs["merged"] = case.encoding(case.schedule, None)
    seconds = in_turns(runs, args.repeats, budget=args.budget)
    peaks = {run: round(peak_added(call, args.device) / MIB, 1) for run, call in runs.items()}
    _, macs = case.macs
    for how in WAYS:
        name = f"seconds, unmerged by {how}, over not unmerged; {case.where}"
        result = comparison(name, seconds[how], seconds["merged"])
        shares(result, case.floor, seconds[how], macs=macs)
        yield result | {"peak_mib": {"ours": peaks[how], "peer": peaks["merged"]}}


def alone(case: Case) -> Iterator[dict[str, Any]]:
    args = case.args
    for how in WAYS:
        state = case.encoding(case.schedule, how)()
        runs = {"ours": lambda state=state: unmerge(state).contiguous(), "gather": one_gather(state)}
        with torch.inference_mode():
            seconds = in_turns(runs, 5 * args.repeats, warmup=3, budget=args.budget)
            peaks = {run: round(peak_added(call, args.device) / MIB, 2) for run, call in runs.items()}
        name = f"seconds of unmerging by {how}, alone, over one gather; {case.where}"
        result = comparison(name, *seconds.values())
        shares(result, case.floor, seconds["ours"], nbytes=moved(state))
        yield result | {"peak_mib": {"ours": peaks["ours"], "peer": peaks["gather"]}}


def one_gather(state: TokenState) -> Callable[[], Tensor]:
    """One call copies the token of each patch's slot, which is known before, to a grid in memory."""
    source = slots(state)[:, state.num_prefix :, None].expand(-1, -1, state.tokens.shape[2])
    height, width = state.grid
    return lambda: state.tokens.gather(1, source).mT.reshape(len(source), -1, height, width)


def moved(state: TokenState) -> int:
    """Bytes that any way reads and writes: the tokens, and a value for each patch."""
    patches = state.grid[0] * state.grid[1]
    batch, slots_left, channels = state.tokens.shape
    return batch * (slots_left + patches) * channels * state.tokens.element_size()


if __name__ == "__main__":
    main()
