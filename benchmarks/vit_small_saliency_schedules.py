"""Where a real pretrained ViT-S/14 with a dense head should merge, at 70, 50 and 35 % of its MACs: even and
early schedules, solved ones, and ones that are learned by gradients as DiffRate learns its rates.

The model is frozen, and merges by ToMe's keys or by an embedding that `dtem teach` taught. Schedules are
solved on some of the pictures for teaching, by the divergence of the saliency map from the unmerged model's,
without labels; the learned ones get as many seconds on the same pictures. All are compared on the others. A
stopped script keeps the adapters.

    python benchmarks/vit_small_saliency_schedules.py --weights vit_small_saliency/model.safetensors \\
        --train 'data/camvid/train-{00000..00003}.tar' --val data/camvid/val-00000.tar
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from record import write_record
from saliency import BATCH, SaliencyMap, divergence, opened, read_decoder, taught
from stages import arguments
from torch import Tensor

from launch.measure.solving import solved_with_bar
from launch.published.batches import held_out_batches
from launch.published.merged import merged_model
from launch.published.pictures import find_pictures
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.learned_schedule import Loss, learned_schedule
from pipeline.backbone.macs import Counted, counted_model
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.published import Published
from pipeline.backbone.solved_schedule import ScheduleSolver, Solved
from pipeline.merging.schedule import WITHIN
from pipeline.rng import generator

MACS = (0.7, 0.5, 0.35)
AT_ONCE = 8
"""Images of a step of what learns."""
Pair = tuple[Tensor, Tensor]
"""Images [B, 3, H, W], and the logits of the unmerged saliency map [B, 1, H, W]."""
CLAIM = (
    "divergence (nats x 1e4) of a pretrained ViT-S/14's saliency map from that of the unmerged model, at 70, "
    "50 and 35 % of the MACs: solved schedules below even and early ones and below those that are learned by "
    "gradients in as many seconds, for ToMe and for DTEM that is taught without labels"
)


@dataclass
class Compared:
    """A policy's schedules at a share of the MACs, and what they do to the pictures to report on. seconds: of
    solving."""

    seconds: float
    solved: Solved
    schedules: dict[str, list[int]]
    scores: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = arguments(__doc__, "vit_small_saliency_schedules")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of ViT and decoder")
    parser.add_argument("--solve-images", type=int, default=48, help="pictures to solve on")
    parser.add_argument("--report-images", type=int, help="pictures to report on (default: all)")
    parser.add_argument("--macs", type=float, nargs="+", default=list(MACS))
    parser.add_argument("--policies", nargs="+", default=["tome", "dtem"], choices=["tome", "dtem"])
    parser.add_argument("--no-learned", action="store_true", help="leave the learned schedules out")
    args = parser.parse_args()
    published, signal = opened(args.weights), SaliencyMap(read_decoder(args.weights))
    solving, reported = (
        read(published, source, count, args.steps)
        for source, count in ((args.train, args.solve_images), (args.val, args.report_images))
    )
    macs = args.macs if args.steps is None else args.macs[:1]
    write_record(
        args.record, CLAIM, results(args, published, signal, solving, reported, macs), seeds=args.seeds
    )


def read(published: Published, source: str, count: int | None, trial: int | None) -> Tensor:
    """[B, 3, H, W]: pictures of a source, so many drawn ones or all; two in a trial."""
    pictures = find_pictures(source)
    drawn = torch.randperm(len(pictures), generator=generator(0, "solve")).tolist()
    numbers = range(len(pictures)) if count is None else sorted(drawn[:count])
    numbers = numbers if trial is None else numbers[:2]
    workers = len(os.sched_getaffinity(0)) - 1
    size, pixels = published.size, published.pixels
    batches = held_out_batches(pictures, numbers, size, pixels, batch_size=BATCH, workers=workers)
    return torch.cat([batch.to(torch.device("cpu")).images for batch in batches])


def results(
    args: argparse.Namespace,
    published: Published,
    signal: SaliencyMap,
    solving: Tensor,
    reported: Tensor,
    macs: Sequence[float],
) -> Iterator[dict[str, Any]]:
    """A result for each policy, seed and share of the MACs."""
    for seed in args.seeds:
        policies = [name for name in args.policies if name == "dtem" or seed == args.seeds[0]]
        whole = merged_model(published.model, "none", 0, seed=seed)
        for policy in policies:
            adapter = load_adapter(taught(args, policy, seed)) if policy == "dtem" else None
            model = merged_model(published.model, policy, 0, seed=seed, adapter=adapter)
            comparison = Comparison(signal, whole, model, solving)
            to_report = comparison.pairs(reported, BATCH)
            for share in macs:
                found = comparison.at(share, learned=not args.no_learned)
                for name, schedule in found.schedules.items():
                    found.scores[name] = comparison.measure(to_report, schedule)
                yield _row(policy, seed, share, comparison.counted, found)


def _row(policy: str, seed: int, share: float, counted: Counted, found: Compared) -> dict[str, Any]:
    whole = counted.macs(counted.schedule(0)).total
    spent = {name: counted.macs(schedule).total / whole for name, schedule in found.schedules.items()}
    return {
        "name": f"divergence, {policy}, seed {seed}, {share:.0%} of the MACs",
        "reduction": found.schedules["solved"],
        "macs_ratio": round(spent["solved"], 4),
        "scores": {name: [round(value, 2)] for name, value in found.scores.items()},
        "schedules": found.schedules,
        "macs_ratios": {name: round(ratio, 4) for name, ratio in spent.items()},
        "on_images_to_solve_on": {name: round(damage, 2) for name, (_, damage) in found.solved.starts.items()}
        | {"solved": round(found.solved.damage, 2)},
        "seconds": round(found.seconds, 1),
    }


class Comparison:
    """The schedules of one model."""

    def __init__(self, signal: SaliencyMap, whole: MergingModel, model: MergingModel, solving: Tensor):
        self._signal, self._whole, self._model = signal, whole, model
        model.requires_grad_(False)
        self.counted = counted_model(model, solving[:1])
        to_solve = self.pairs(solving, BATCH)
        self._to_learn = self.pairs(solving, AT_ONCE)
        self._solver = ScheduleSolver(self.counted, lambda schedule: self.measure(to_solve, schedule))

    def at(self, share: float, *, learned: bool) -> Compared:
        """The schedules of a share of the MACs. The learned one gets the seconds of the solved one."""
        start = time.perf_counter()
        solved = solved_with_bar(self._solver, share, f"{share:g}")
        seconds = time.perf_counter() - start
        starts = {name: schedule for name, (schedule, _) in solved.starts.items() if name in WITHIN}
        found = Compared(seconds, solved, {**starts, "solved": solved.schedule})
        if learned:
            rates = learned_schedule(self._model, self.counted, share, self._loss(), within(seconds))
            found.schedules["learned"] = rates.schedule
        return found

    def _map(self, model: MergingModel, images: Tensor) -> Tensor:
        return self._signal.read(model, self._signal.encode(model, images))

    @torch.no_grad()
    def pairs(self, images: Tensor, at_once: int) -> list[Pair]:
        return [(part, self._map(self._whole, part)) for part in images.split(at_once)]

    @torch.no_grad()
    def measure(self, pairs: Sequence[Pair], schedule: Sequence[int]) -> float:
        """Mean divergence in nats x 1e4."""
        self._model.reduction = list(schedule)
        own = [divergence(self._map(self._model, part), whole) for part, whole in pairs]
        return float(torch.cat(own).mean()) * 1e4

    def _loss(self) -> Loss:
        endless = cycle(self._to_learn)

        def loss(schedule: Sequence[int]) -> Tensor:
            images, whole = next(endless)
            options = {"reduction": list(schedule), "relaxed": True}
            merged = self._signal.encode(self._model, images, **options)
            return divergence(self._signal.read(self._model, merged), whole).mean()

        return loss


def within(seconds: float) -> Iterator[int]:
    """Steps, of which one begins as long as the seconds are not over."""
    end, step = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        yield step
        step += 1


if __name__ == "__main__":
    main()
