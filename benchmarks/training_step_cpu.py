"""Time and peak memory of a modular training step on the CPU, against the authors' release.

python benchmarks/training_step_cpu.py --release DTEM/deit.py
"""

import argparse
from collections.abc import Callable

import torch
from contestants import ours, release, training_step, unmerged
from measure import comparison, in_turns, peak_memory
from record import write_record
from torch import Tensor

VARIANTS: dict[str, dict[str, str]] = {"default": {}, "reference": {"split": "reference"}}


def step(variant: str, model: str, batch: int, r: int, path: str) -> Callable[[], Tensor]:
    """A step of the release's model or, under another name, of ours with the same weights."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    theirs = release(unmerged(model), path, r=r)
    if variant == "release":
        return training_step(theirs, images, only="metric")
    return training_step(ours(theirs, model, policy="dtem", r=r, **VARIANTS[variant]), images, only="metric")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--release", required=True, help="the authors' file with patch_deit")
    parser.add_argument("--record", default="benchmarks/records/training_step_cpu.json")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    names = ["release", *VARIANTS]
    common = (args.model, args.batch, args.r, args.release)
    mebibytes = {name: peak_memory(step, name, *common) / 2**20 for name in names}
    seconds = in_turns({name: step(name, *common) for name in names}, args.repeats)
    results = []
    for name in VARIANTS:
        memory = [mebibytes[name]], [mebibytes["release"]]
        results += [
            comparison(f"seconds of a step, dtem {name}", seconds[name], seconds["release"]),
            comparison(f"MiB added at the peak of a step, dtem {name}", *memory),
        ]
    claim = (
        f"{args.model}, batch {args.batch}, r={args.r}, fp32, {args.threads} threads: modular step, "
        "ours over the release's"
    )
    write_record(args.record, claim, results)


if __name__ == "__main__":
    main()
