"""Seconds and memory of a training step of DTEM: ours over the authors' release's, over timm's unmerged
model, and over an unmerged forward with the gradients of its activations alone.

    python benchmarks/training_step.py --peer dtem=DTEM/deit.py
    python benchmarks/training_step.py --device cuda --precision bf16 --batches 128 --peer dtem=DTEM/deit.py
"""

import argparse
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import torch
from contestants import ours, training_step, unmerged
from floor import Floor, counted_macs, floor_of, shares
from measure import MIB, comparison, in_turns, peak_added, peak_memory
from options import PRECISIONS, place, random_images, speed_arguments, words
from peer_paths import add_peers
from peers import release, working
from record import write_record
from torch import Tensor, nn

from pipeline.interfaces import StepSpec
from pipeline.modes import set_modes
from pipeline.parts import BALANCE, METRIC


class Kind(NamedTuple):
    """A kind of our training. options: of the model. only: what of the names is trained. peers: names of jobs
    that it is compared with."""

    options: dict[str, Any]
    only: str
    peers: tuple[str, ...]


KINDS = {
    "default": Kind({}, "metric", ("release modular", "activations")),
    "reference": Kind({"split": "reference"}, "metric", ("release modular",)),
    "merge_cost": Kind({"objective": "merge_cost"}, "metric", ("release modular", "activations")),
    "end_to_end": Kind({}, "", ("release end_to_end", "timm")),
}
"""`default` and `reference` are modular: `reference` partitions tokens as the release does. Of a step of
merge_cost the middle block is drawn, whose cost is the mean's."""


class Job(NamedTuple):
    """A step, in plain words for a fresh process. theirs: path of the release, or nothing."""

    name: str
    model: str
    batch: int
    r: int
    theirs: str
    device: str
    precision: str
    threads: int


def step(job: Job) -> Callable[[], object]:
    """One call is a step of the job, on the same weights for all."""
    torch.set_num_threads(job.threads)
    images, dtype = random_images(job.batch, torch.device(job.device)), PRECISIONS[job.precision]
    base = unmerged(job.model)
    if job.name == "activations":
        return activation_gradients(base, images, dtype)
    if job.name == "timm":
        return training_step(base, images, dtype)
    base = release(base, job.theirs, r=job.r) if job.theirs else base
    if job.name.startswith("release"):
        return training_step(base, images, dtype, only="metric" if "modular" in job.name else "")
    kind = KINDS[job.name]
    model = ours(base, job.model, policy="dtem", r=job.r, **kind.options)
    spec = StepSpec(frozenset({METRIC, BALANCE}), draw=0.5) if kind.only else StepSpec()
    run = training_step(model, images, dtype, only=kind.only, spec=spec)
    set_modes(model, spec.trains)
    return run


def activation_gradients(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """One call is a forward of timm's model and the gradient of its logits in the embedded patches, through
    all blocks. No weight has a gradient."""
    model.to(images.device).eval().requires_grad_(False)
    embed = model.get_submodule("patch_embed")
    embed.register_forward_hook(lambda module, inputs, output: output.requires_grad_())

    def run() -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            loss = model(images).float().square().sum()
        loss.backward()
        return loss.detach()

    return run


def main() -> None:
    parser = speed_arguments(__doc__, "training_step", batches=(32,), repeats=9)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--what", type=words, default=list(KINDS), help=f"of {','.join(KINDS)}")
    add_peers(parser)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    floor = floor_of(args.device, PRECISIONS[args.precision])
    results = (
        result
        for batch, what in product(args.batches, args.what)
        for result in compare(what, batch, args, floor)
    )
    claim = (
        f"{args.model}, r = {args.r}, {place(args)}: a training step of ours over the peer's, at each "
        "batch size"
    )
    write_record(args.record, claim, results)


def compare(what: str, batch: int, args: argparse.Namespace, floor: Floor) -> list[dict[str, Any]]:
    """The step of one kind beside its peers, seconds and memory."""
    theirs = args.peer.get("dtem", "")
    names = [what, *(peer for peer in KINDS[what].peers if theirs or not peer.startswith("release"))]
    jobs = {
        name: Job(name, args.model, batch, args.r, theirs, str(args.device), args.precision, args.threads)
        for name in names
    }
    others = [name for name in names if name.startswith("release")]
    calls = working({name: partial(step, job) for name, job in jobs.items()}, others)
    mebibytes = {name: [memory(jobs[name]) / MIB] for name in calls}
    macs = counted_macs(calls[what])
    seconds = in_turns(calls, args.repeats, budget=args.budget)
    results = []
    for peer in (name for name in calls if name != what):
        where = f"dtem {what}, over {peer}, batch {batch}, {place(args)}"
        timed = comparison(f"seconds of a step, {where}", seconds[what], seconds[peer])
        added = comparison(f"MiB added at the peak of a step, {where}", mebibytes[what], mebibytes[peer])
        results += [shares(timed, floor, seconds[what], macs=macs), added]
    return results


@cache
def memory(job: Job) -> int:
    """Bytes that the step adds at its peak: on a CPU to the resident memory of a fresh process, on a GPU to
    the tensors."""
    device = torch.device(job.device)
    return peak_added(step(job), device) if device.type == "cuda" else peak_memory(step, job)


if __name__ == "__main__":
    main()
