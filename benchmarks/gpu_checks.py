"""What has to hold before a speed on a device counts: merged inference gives there what it gives on the CPU
in float64, our kernels give what PyTorch's operators give, and neither inference nor a training step makes
the host wait for the device.

    python benchmarks/gpu_checks.py --device cuda --record benchmarks/records/gpu_checks.json
"""

import argparse
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contestants import logits_of, ours, unmerged
from engine_overhead import plain_run
from kernel_checks import kernel_checks
from options import PRECISIONS, place, random_images, speed_arguments
from record import write_record

from pipeline.config.load import from_plain
from pipeline.kernels.choice import INTERPRETED
from pipeline.modes import set_modes
from pipeline.train.metrics import MetricSums
from pipeline.train.mixing import tasks_of_step
from pipeline.train.reporting import Stopwatch
from pipeline.train.setup import build_run
from pipeline.train.train_step import train_step

NEAR = {"fp32": 1e-3, "bf16": 0.1}
"""Largest relative distance of the logits of an image."""
AGREE = 0.8
"""Share of the images that have to be near: where two pairs are equally similar, rounding decides."""


def main() -> None:
    parser = speed_arguments(__doc__, "gpu_checks", batches=(8,))
    parser.add_argument("--model", default="deit_small_patch16_224")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checks: dict[str, Callable[[], None]] = {
        f"logits, {policy}, {precision}, batch {batch}": lambda p=policy, q=precision, b=batch: same_logits(
            args, p, q, b
        )
        for policy, precision, batch in product(("tome", "dtem"), PRECISIONS, args.batches)
    }
    checks |= {
        f"no wait in inference, {policy}": lambda p=policy: no_wait(args, p) for policy in ("tome", "dtem")
    }
    checks |= {
        f"no wait in a step, {mode}": lambda m=mode: no_wait_in_a_step(m) for mode in ("backbone", "modular")
    }
    if args.device.type == "cuda" or INTERPRETED:
        checks = kernel_checks(args.device) | checks
    failed: list[str] = []
    write_record(args.record, f"what a speed relies on holds, {place(args)}", tried(checks, failed))
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


def tried(checks: Mapping[str, Callable[[], None]], failed: list[str]) -> Iterator[dict[str, Any]]:
    """failed: gets the names of those that do not pass."""
    for name, check in checks.items():
        well = passed(name, check)
        failed += [] if well else [name]
        yield {"name": name, "counts": {"tried": 1, "failed": int(not well)}}


def passed(name: str, check: Callable[[], None]) -> bool:
    try:
        check()
    except Exception:  # what fails is told, and the other checks go on
        print(f"  FAILED {name}\n{traceback.format_exc()}", flush=True)
        return False
    return True


@torch.inference_mode()
def same_logits(args: argparse.Namespace, policy: str, precision: str, batch: int) -> None:
    """Raises AssertionError."""
    model, images = (
        ours(unmerged(args.model), args.model, policy=policy, r=16).eval(),
        random_images(batch, torch.device("cpu")),
    )
    wanted = logits_of(model.double(), images.double())
    model.float().to(args.device)
    with torch.autocast(args.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        found = logits_of(model, images.to(args.device)).double().cpu()
    distance = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    near = (distance < NEAR[precision]).double().mean()
    assert near >= AGREE, f"{near:.0%} of the images are near: {distance.tolist()}"


@torch.inference_mode()
def no_wait(args: argparse.Namespace, policy: str) -> None:
    """Raises RuntimeError, by CUDA."""
    model = ours(unmerged(args.model), args.model, policy=policy, r=16).to(args.device).eval()
    images = random_images(args.batches[0], args.device)
    logits_of(model, images)
    with waits_refused():
        logits_of(model, images)


def no_wait_in_a_step(mode: str) -> None:
    """The third step of a run, on the run's own device. Raises RuntimeError, by CUDA."""
    with TemporaryDirectory() as folder:
        run = build_run(from_plain(plain_run("digits ViT", mode, 8, 4, Path(folder))), "none")
        set_modes(run.engine.module, run.procedure.spec(0).trains)
        streams = {name: repeat(next(iter(stream))) for name, stream in run.streams.items()}
        sums, watch = MetricSums(only_finite=True), Stopwatch()

        def step() -> None:
            train_step(run, tasks_of_step(run.resolved, run.progress.step), streams, sums, watch)

        step()
        step()
        with waits_refused():
            step()


@contextmanager
def waits_refused() -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    main()
