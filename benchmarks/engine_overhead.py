"""What the training loop costs: a step of `dtem train` in one process, with all that the loop does besides
(report, gate, schedule, meetings, watchdog), over a bare loop in PyTorch that makes the same step.

Both get the same batch from memory, and take turns in one process: our loop makes some steps, then the bare
loop as many, and so on.

    python benchmarks/engine_overhead.py
    python benchmarks/engine_overhead.py --device cuda --precision bf16 --batches 128 --models DeiT-small
"""

import argparse
import io
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from functools import partial
from itertools import count, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch

import torch
from floor import Floor, counted_macs, floor_of, shares
from measure import MIB, comparison, peak_added, peak_within
from options import PRECISIONS, place, speed_arguments
from PIL import Image
from record import write_record
from torch.nn import functional as F

import tasks  # noqa: F401 - fills the registry
from pipeline.config.load import from_plain
from pipeline.data.make.write import jobs_of, write_shards
from pipeline.data.stream import TrainStream
from pipeline.engine.model_on_device import autocast
from pipeline.interfaces import Batch
from pipeline.modes import set_modes
from pipeline.train import loop
from pipeline.train.run import Run
from pipeline.train.setup import build_run

MODELS: dict[str, dict[str, Any]] = {
    "digits ViT": dict(
        name="vit_tiny_patch16_224",
        img_size=64,
        options=dict(patch_size=8, embed_dim=64, depth=4, num_heads=2, class_token=False, global_pool="avg"),
    ),
    "DeiT-small": dict(name="deit_small_patch16_224", img_size=224),
}
MODES: dict[str, dict[str, Any]] = {
    "backbone": dict(policy="none"),
    "modular": dict(policy="dtem", reduction=4),
}
"""Modes of training -> how their run merges."""
TOGETHER = 10
"""Steps that one loop makes before the other has its turn, so that a GPU is not waited for in each. Both
report as often."""
CLASSES = 10
SAMPLES = {"train": 64, "val": 8}


def main() -> None:
    parser = speed_arguments(__doc__, "engine_overhead", batches=(32,), repeats=7, budget=90)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    floor = floor_of(args.device, PRECISIONS[args.precision])
    each = product(args.models, args.modes, args.batches)
    results = (compare(args, floor, *one) for one in each)
    claim = f"{place(args)}: a step of the training loop over a bare loop on the same step: at most 1.05"
    write_record(args.record, claim, results)


def compare(args: argparse.Namespace, floor: Floor, model: str, mode: str, batch: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        loops = Loops(args, model, mode, batch, Path(folder))
        seconds = loops.measure()
    name = f"seconds of a step, our loop over a bare one; {model}, {mode}, batch {batch}, {place(args)}"
    result = comparison(name, seconds["ours"], seconds["bare"])
    shares(result, floor, seconds["ours"], macs=loops.macs)
    return result | {"peak_mib": loops.peaks}


class Loops:
    """Our training loop, and a bare one that has its turn where ours asks for its next batch. After
    `measure`, macs are those of a bare step, and peaks (MiB) of a step of both."""

    def __init__(self, args: argparse.Namespace, model: str, mode: str, batch: int, folder: Path):
        self.macs, self.peaks = 0.0, {"ours": 0.0, "peer": 0.0}
        self._args, self._seconds = args, {"ours": [], "bare": []}
        plain = plain_run(model, mode, batch, TOGETHER * (args.repeats + 1) + 3, folder)
        plain["engine"] |= dict(precision=args.precision, threads=args.threads)
        self._config = from_plain(plain)

    def measure(self) -> dict[str, list[float]]:
        """Seconds of a step of both, in turns."""
        with patch.object(loop, "build_run", self._in_memory), redirect_stderr(io.StringIO()):
            loop.train(self._config, "none")
        return self._seconds

    def _in_memory(self, *given: Any) -> Run:
        """The run, whose stream has one batch for ever."""
        run = build_run(*given)
        if run.engine.device.type != self._args.device.type:
            raise SystemExit(f"a run takes {run.engine.device} here; hide it by CUDA_VISIBLE_DEVICES=")
        [(task, stream)] = run.streams.items()
        batch = next(iter(stream))
        bare = bare_step(run, batch)
        self.macs = counted_macs(bare)
        self.peaks["peer"] = round(peak_added(bare, run.engine.device) / MIB, 1)
        run.streams[task] = cast(TrainStream, InMemory(stream, self._turns(batch, bare)))
        return run

    def _turns(self, batch: Batch, bare: Callable[[], object]) -> Iterator[Batch]:
        """The batch for the steps of our loop, which are done where it asks for one more. The first turn
        warms up, and of one step before the turns the memory is watched."""
        yield batch
        with peak_within(self._args.device) as peak:
            yield batch
        self.peaks["ours"] = round(peak.nbytes / MIB, 1)
        for turn in range(self._args.repeats + 1):
            times = [_now()]
            for _ in range(TOGETHER):
                yield batch
            times.append(_now())
            for _ in range(TOGETHER):
                bare()
            times.append(_now())
            if turn > 0:
                for name, begun, ended in zip(self._seconds, times, times[1:], strict=False):
                    self._seconds[name].append((ended - begun) / TOGETHER)
        yield batch


class InMemory:
    """A stream with other batches."""

    def __init__(self, stream: TrainStream, batches: Iterator[Batch]):
        self._stream, self._batches = stream, batches

    def __iter__(self) -> Iterator[Batch]:
        return self._batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def bare_step(run: Run, batch: Batch) -> Callable[[], None]:
    """One call is a step as a script of a few lines makes it: a copy of the model, AdamW, a schedule,
    clipping, and a loss that is read now and then."""
    model, device, spec = deepcopy(run.engine.module), run.engine.device, run.procedure.spec(0)
    set_modes(model, spec.trains)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100_000)
    task, steps = model.tasks[batch.task], count(1)

    def step() -> None:
        moved = batch.to(device)
        with autocast(device, run.config.engine.precision):
            output = model.encode(
                batch.task, moved.images, relaxed=spec.relaxed, prefix_alone=task.reads_prefix_alone
            )
            logits = task.logits(output)
            loss = F.cross_entropy(logits, moved.targets.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if next(steps) % TOGETHER == 0:
            assert math.isfinite(loss.item())

    return step


def plain_run(model: str, mode: str, batch: int, steps: int, folder: Path) -> dict[str, Any]:
    """The config of a run on random pictures, which are written to the folder."""
    side = MODELS[model]["img_size"]
    jobs = [
        job
        for split, number in SAMPLES.items()
        for job in jobs_of(split, range(number), partial(pictures, side), number)
    ]
    write_shards(jobs, folder / "set", classes=[str(label) for label in range(CLASSES)])
    shards = dict(train=str(folder / "set"), val=str(folder / "set"), img_size=side, batch_size=batch)
    data = dict(shards, workers=0, augment=dict(crop_scale=[1.0, 1.0], crop_pct=1.0))
    return dict(
        backbone=MODELS[model],
        merging=MODES[mode],
        tasks=dict(images=dict(type="classification", head=dict(num_classes=CLASSES), data=data)),
        train=dict(mode=mode, steps=steps, log_every=TOGETHER, save_every=10 * steps, save_minutes=None),
        optim=dict(lr=1e-4, clip_grad=1.0, ema_decay=0.0, warmup_steps=1),
        log=dict(trackers=[]),
        engine=dict(type="local", precision="fp32"),
        output=str(folder / "run"),
    )


def pictures(side: int, numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for number in numbers:
        noise, file = random.Random(number).randbytes(3 * side * side), io.BytesIO()
        Image.frombytes("RGB", (side, side), noise).save(file, "JPEG")
        yield f"{number:04d}", {"jpg": file.getvalue(), "cls": str(number % CLASSES).encode()}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
