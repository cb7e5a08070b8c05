"""What a core saves where the device decodes JPEGs: images per second of a loader in one process, up to
normalised images on the device, with `data.decode="cuda"` over decoding by the core.

    python benchmarks/device_decode.py --device cuda
    python benchmarks/device_decode.py --batches 16       # a trial: the CPU stands for the device
"""

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from floor import Floor, floor_of, shares
from measure import MIB, comparison, in_turns, peak_added
from options import place, speed_arguments
from PIL import Image
from record import write_record
from torch import Tensor

import pipeline.data.samples  # noqa: F401 - fills the registry
from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.make.write import jobs_of, write_shards
from pipeline.data.stream import build_stream

SIZE, CROP, CLASSES = (500, 375), 224, 10
"""Pixels of a picture (width, height), and of a crop's side."""
WAYS = ("cuda", "worker")
"""Values of `data.decode`."""


def main() -> None:
    parser = speed_arguments(__doc__, "device_decode", batches=(64,), precisions=False)
    parser.add_argument("--pictures", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    claim = (
        f"{CROP}x{CROP} crops of {SIZE[0]}x{SIZE[1]} JPEGs, {place(args)}: images/s of one process that "
        "leaves decoding to the device, over one that decodes"
    )
    write_record(args.record, claim, measured(args))


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    floor = floor_of(args.device, torch.float32)
    with TemporaryDirectory() as folder:
        numbers = range(max(args.pictures, *args.batches))
        jobs = jobs_of("train", numbers, pictures, 64)
        write_shards(jobs, Path(folder) / "set", classes=[str(label) for label in range(CLASSES)])
        for batch in args.batches:
            yield compare(args, batch, Path(folder) / "set", floor)


def compare(args: argparse.Namespace, batch: int, shards: Path, floor: Floor) -> dict[str, Any]:
    runs = {way: loading(shards, batch, way, args.device) for way in WAYS}
    seconds = in_turns(runs, args.repeats, warmup=2, budget=args.budget)
    speed = {way: [batch / s for s in times] for way, times in seconds.items()}
    peaks = {way: round(peak_added(run, args.device) / MIB, 1) for way, run in runs.items()}
    result = comparison(f"images/s, batch {batch}, {place(args)}", speed["cuda"], speed["worker"])
    # any way writes every pixel of a picture once, and reads it for the crop
    nbytes = 2 * 3 * SIZE[0] * SIZE[1] * batch
    shares(result, floor, seconds["cuda"], nbytes=nbytes)
    return result | {"peak_mib": {"ours": peaks["cuda"], "peer": peaks["worker"]}}


def loading(shards: Path, batch: int, way: str, device: torch.device) -> Callable[[], Tensor]:
    """One call loads the next batch, and gives its normalised images on the device."""
    config = DataConfig(
        schema="classification",
        train=str(shards),
        batch_size=batch,
        workers=0,
        img_size=CROP,
        decode=way,  # pyright: ignore[reportArgumentType]
        augment=AugmentConfig(),
    )
    batches = iter(build_stream("pictures", config, seed=0, rank=0, world_size=1))
    return lambda: next(batches).to(device).images


def pictures(numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """JPEGs that are coarse and fine like photographs, about 60 KB each."""
    for number in numbers:
        draws, file = np.random.default_rng(number), io.BytesIO()
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE)
        pixels = np.asarray(coarse) + draws.normal(0, 12, (SIZE[1], SIZE[0], 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=75)
        yield f"{number:05}", {"jpg": file.getvalue(), "cls": str(number % CLASSES).encode()}


if __name__ == "__main__":
    main()
