"""Images per second of a loader on the CPU: 224x224 crops of JPEGs of 400x300 to 500x375, ours against
WebDataset with Pillow, torchvision's ImageFolder and timm's loader, stage by stage.

All read the same pictures by the same recipe. The recipes are a random resized crop with a flip, and the same
with RandAugment: ours in the workers, which is the way on a CPU, and on the device, which is for a GPU. What
is handed over by workers is normalised float32, but of ours bytes: the device normalises them, and changes
them in the last recipe. The figure "on the device" has all of that. Processes take turns, each with a number
of cores of its own.

    python benchmarks/streaming.py
"""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from loaders import CROP, LOADERS, Recipe, our_data
from measure import comparison
from PIL import Image
from record import write_record

LARGE = 2048, 1536
CLASSES = 4
POLICY = "rand-m7-mstd0.5-inc1"


RECIPES = {
    "crop and flip": Recipe(None),
    "RandAugment in the workers": Recipe(POLICY),
    "RandAugment on the device": Recipe(POLICY, on_device=True),
}
SHARD = 128
"""Pictures of a shard."""
HANDED_OVER = dict.fromkeys(RECIPES, " (ours not normalised yet)") | {
    "RandAugment on the device": " (ours neither changed nor normalised yet)"
}
"""What a device does behind our workers, and the peers' workers did already."""


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs of 400x300 to 500x375 in folders of classes."""
    draws = np.random.default_rng(0)
    for number in range(count):
        width = int(draws.integers(400, 501))
        place = folder / "train" / f"class{number % CLASSES}" / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(draws, (width, 3 * width // 4)))


def picture(draws: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG of (width, height), coarse and fine like a photograph."""
    coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size)
    pixels = np.asarray(coarse) + draws.normal(0, 12, (size[1], size[0], 3))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=75)
    return out.getvalue()


def stages(work: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds an image of what a worker does, of all of that, and of what the device does behind it."""
    from launch.bench.shards import measure

    found = {}
    for name, recipe in RECIPES.items():
        rates = measure(our_data(work, args, recipe), (), min(256, args.pictures))
        found[name] = {rate["stage"]: round(1000 / rate["samples_per_s"], 4) for rate in rates}
    return found


def large_pictures(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of a core, decoded and cropped out of large pictures: `data.decode` scaled over
    worker, in turns."""
    from pipeline.config.schema import AugmentConfig
    from pipeline.data.augment.images import train_way
    from pipeline.data.members.jpeg import image_reader
    from pipeline.rng import seed_generators

    draws, crop = np.random.default_rng(0), train_way(AugmentConfig(interpolation=args.interpolation), CROP)
    files = [picture(draws, LARGE) for _ in range(max(2, args.pictures // 64))]
    rates: dict[str, list[float]] = {"scaled": [], "worker": []}
    for turn in range(args.repeats):
        for decode, found in rates.items():
            read, started = image_reader(decode, upright=True), time.process_time()
            for number, data in enumerate(files):
                seed_generators(0, "large", turn, number)
                crop(read(data))
            found.append(len(files) / (time.process_time() - started))
    title = f"pictures of {LARGE[0]}x{LARGE[1]}: images per second of a core, data.decode scaled over worker"
    return comparison(title, rates["scaled"], rates["worker"])


def figures(name: str, work: Path, args: argparse.Namespace, recipe: Recipe) -> dict[str, float]:
    """Images per second: as workers hand them over, and on the device (the CPU, where there is no other),
    changed and normalised; and the former per second of a core, over all processes."""
    found, device = {}, "cuda" if torch.cuda.is_available() else "cpu"
    for figure in ("handed over", "on the device"):
        loaded = LOADERS[name](work, args, recipe, args.workers)
        next(loaded)
        started, spent = time.perf_counter(), core_seconds()
        for item in islice(loaded, args.batches):
            if name == "ours" and figure == "on the device":
                item.to(device)
        images = args.batch * args.batches
        found[figure] = images / (time.perf_counter() - started)
        if figure == "handed over":
            found["handed over by a core"] = images / (core_seconds() - spent)
        del loaded
    return found


def core_seconds() -> float:
    """Of this process and its workers, until now."""
    ticks = 0
    for worker in active_children():
        after_name = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measured(name: str, recipe: str, work: Path) -> dict[str, float]:
    """The figures, from a process of its own."""
    command = [sys.executable, *sys.argv, "--work", str(work), "--one", name, recipe]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def results_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    for recipe in RECIPES:
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in LOADERS}
        for _ in range(args.repeats):
            for name in LOADERS:
                turns[name].append(measured(name, recipe, args.work))
        for peer in [name for name in LOADERS if name != "ours"]:
            for figure in turns[peer][0]:
                own, theirs = ([turn[figure] for turn in turns[name]] for name in ("ours", peer))
                behind = HANDED_OVER[recipe] if figure.startswith("handed over") else ""
                title = f"{recipe}: images per second, {figure}{behind}, over {peer}"
                results.append(comparison(title, own, theirs))
    results[0]["milliseconds an image"] = stages(args.work, args)
    return [*results, large_pictures(args)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=24, help="that are timed, behind one that warms up")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic"), default="bicubic")
    parser.add_argument("--record", default="benchmarks/records/streaming.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    if args.one:
        name, recipe = args.one
        print(json.dumps(figures(name, args.work, args, RECIPES[recipe])))
        return
    with TemporaryDirectory() as folder:
        work = Path(folder)
        make_pictures(work / "pictures", args.pictures)
        make = ["shards", "make", "imagefolder", str(work / "pictures"), str(work / "shards")]
        subprocess.run(
            [str(Path(sys.executable).parent / "dtem"), *make, "--shard-size", str(SHARD)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        args.work = work
        write_record(args.record, claim_of(args), results_of(args))


def claim_of(args: argparse.Namespace) -> str:
    return (
        f"{CROP}x{CROP} crops of JPEGs of 400x300 to 500x375, {args.interpolation}, batch {args.batch}, "
        f"{args.workers} workers: ours over WebDataset with Pillow, torchvision's ImageFolder and timm's "
        "loader"
    )


if __name__ == "__main__":
    main()
