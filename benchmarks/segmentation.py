"""What merging half of the tokens saves in the encoder of a segmentation model, with all of its unmerging.

All runs take turns in one process; random weights and images.

    python benchmarks/segmentation.py
    python benchmarks/segmentation.py --device cuda --precision bf16 --batches 1,16,64
"""

from collections.abc import Iterator
from typing import Any

from encoders import WAYS, Case, gridded, measure_encoders
from floor import shares
from measure import MIB, comparison, in_turns, peak_added


def main() -> None:
    measure_encoders(__doc__, "segmentation", "the encoder's images/s, unmerged, over r = 0", [compare])


def compare(case: Case) -> Iterator[dict[str, Any]]:
    args, batch = case.args, len(case.images)
    runs = {how: gridded(case.encoding(case.schedule, how)) for how in WAYS}
    runs["r = 0"] = gridded(case.encoding(0, None))
    seconds = in_turns(runs, args.repeats, budget=args.budget)
    speed = {run: [batch / s for s in times] for run, times in seconds.items()}
    peaks = {run: round(peak_added(call, args.device) / MIB, 1) for run, call in runs.items()}
    whole, merged = case.macs
    for how in WAYS:
        name = f"images/s, unmerged by {how}, over r = 0; {case.where}"
        result = comparison(name, speed[how], speed["r = 0"])
        shares(result, case.floor, seconds[how], macs=merged, mac_ratio=whole / merged)
        yield result | {"peak_mib": {"ours": peaks[how], "peer": peaks["r = 0"]}}


if __name__ == "__main__":
    main()
