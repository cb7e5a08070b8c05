"""Images per second of a loader on the CPU, stage by stage, and the bytes of a batch, against timm's loader.

All read the same pictures and make batches of normalised float32 of them by DeiT's augmentation. A checkout
of another commit can take part:

    python benchmarks/loader_cpu.py --before ../dtem-before
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import comparison
from PIL import Image
from record import ROOT, commit_of, write_record

SIZE = (500, 375)
"""Pixels of a picture: width and height, those of many in ImageNet."""
CLASSES = 4
CROP = 224
DEIT = dict(rand_augment="rand-m7-mstd0.5-inc1", random_erasing=0.25)
TIMM = dict(
    color_jitter=0.0,
    auto_augment="rand-m7-mstd0.5-inc1",
    interpolation="bicubic",
    re_prob=0.25,
    re_mode="pixel",
)
"""The same, as timm's loader is given it."""
FIGURES = {
    "images per second of a core": "alone",
    "images per second of a core, through the workers' queue": "cores",
    "images per second of the workers": "workers",
    "MiB of a batch": "mebibytes",
}
"""What a record calls each figure."""


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs with the coarse and fine structure of photographs, about 60 KB each, in folders of classes."""
    draws = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE)
        pixels = np.asarray(coarse) + draws.normal(0, 12, (SIZE[1], SIZE[0], 3))
        place = folder / "train" / f"class{number % CLASSES}" / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place, quality=75)


def our_batches(work: Path, batch: int, workers: int) -> Iterator[Any]:
    from pipeline.config.schema import AugmentConfig, DataConfig
    from pipeline.data.stream import build_stream

    data = DataConfig(
        schema="classification",
        train=str(work / "shards"),
        batch_size=batch,
        workers=workers,
        img_size=CROP,
        augment=AugmentConfig(**DEIT),
    )
    return iter(build_stream("pictures", data, seed=0, rank=0, world_size=1))


def timms_batches(work: Path, batch: int, workers: int) -> Iterator[Any]:
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(work / "pictures/train")),
        (3, CROP, CROP),
        batch,
        is_training=True,
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=workers > 0,
        **TIMM,
    )
    while True:
        yield from loader


def figures(name: str, work: Path, batch: int, batches: int, workers: int) -> dict[str, float]:
    """What FIGURES lists, of one loader; timm's normalises on its own."""
    ours = name != "timm"
    source = our_batches if ours else timms_batches
    found: dict[str, float] = {}
    for place, processes in (("alone", 0), ("workers", workers)):
        clock, spent = time.perf_counter if processes else time.process_time, core_seconds()
        loaded = source(work, batch, processes)
        first = next(loaded)
        started = clock()
        for item in islice(loaded, batches):
            if ours:
                item.to("cpu")
        found[place] = batch * batches / (clock() - started)
        del loaded
        if processes:
            found["cores"] = batch * (batches + 1) / (core_seconds() - spent)
        if ours:
            found["mebibytes"] = num_bytes(first) / 2**20
    return found


def core_seconds() -> float:
    """Of this process and its workers that have ended, with what they loaded ahead."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def num_bytes(value: Any) -> int:
    """Of all tensors in a batch."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if is_dataclass(value):
        return sum(num_bytes(getattr(value, field.name)) for field in fields(value))
    return sum(map(num_bytes, value)) if isinstance(value, tuple | list) else 0


def stages(work: Path, num: int) -> dict[str, float]:
    """Milliseconds of a core an image: decoding, the random changes behind it, some and all, and, in the
    process that trains, normalisation."""
    from pipeline.config.schema import AugmentConfig, Preprocessing
    from pipeline.data.augment.images import train_transform
    from pipeline.data.members.decode import decode_image
    from pipeline.pixels import Normalisation

    files = [path.read_bytes() for path in islice(sorted(work.glob("pictures/train/*/*.jpg")), num)]
    transform = train_transform(AugmentConfig(**DEIT), CROP)
    plain = train_transform(AugmentConfig(), CROP)
    images = [decode_image(data) for data in files]
    crops = [plain(image)[None] for image in images]
    timed = {
        "decode": (decode_image, files),
        "crop and flip": (plain, images),
        "all": (transform, images),
        "normalise": (Normalisation(Preprocessing.mean, Preprocessing.std), crops),
    }
    found = {}
    for name, (step, inputs) in timed.items():
        started = time.process_time()
        for item in inputs:
            step(item)
        found[name] = round(1000 * (time.process_time() - started) / num, 3)
    return found


def measured(name: str, tree: Path, words: Sequence[str]) -> dict[str, float]:
    """The figures, from a process of its own that imports the tree."""
    command = [sys.executable, __file__, "--one", name, *words]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=640)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8, help="that are timed, behind one that warms up")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", type=Path, help="a checkout of another commit, to compare with")
    parser.add_argument("--record", default="benchmarks/records/loader_cpu.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(figures(args.one, args.work, args.batch, args.batches, args.workers)))
        return
    with TemporaryDirectory() as folder:
        work = Path(folder)
        make_pictures(work / "pictures", args.pictures)
        make = ["shards", "make", "imagefolder", str(work / "pictures"), str(work / "shards")]
        subprocess.run(
            [str(Path(sys.executable).parent / "dtem"), *make, "--shard-size", "128"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        write_record(args.record, claim_of(args), results_of(args, work))


def results_of(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    trees = {"ours": ROOT, "timm": ROOT} | ({"before": args.before.resolve()} if args.before else {})
    words = [
        word for name in ("batch", "batches", "workers") for word in (f"--{name}", str(getattr(args, name)))
    ]
    words += ["--work", str(work)]
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(args.repeats):
        for name, tree in trees.items():
            turns[name].append(measured(name, tree, words))
    results = []
    for peer in [name for name in trees if name != "ours"]:
        for title, key in FIGURES.items():
            if key in turns[peer][0]:
                ours, theirs = ([turn[key] for turn in turns[name]] for name in ("ours", peer))
                results.append(comparison(f"{title}, over {peer}", ours, theirs))
    results[0]["milliseconds of a core an image"] = stages(work, min(args.pictures, 128))
    return results


def claim_of(args: argparse.Namespace) -> str:
    return (
        f"{CROP}x{CROP} crops of {SIZE[0]}x{SIZE[1]} JPEGs by DeiT's augmentation, batch {args.batch}, "
        f"{args.workers} workers: ours over timm's loader"
        + (f", and over commit {commit_of(args.before)}" if args.before else "")
    )


if __name__ == "__main__":
    main()
