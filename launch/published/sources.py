"""What commands take in place of runs: a published model, and its data where they read any."""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from launch.measure.evaluator import progress
from launch.measure.planning import check_schedules
from launch.measure.points import SOLVED, Sweep
from launch.measure.solving import AT_ONCE, IMAGES, Solving
from launch.published.agreement import agreement
from launch.published.batches import held_out_batches
from launch.published.contrastive import is_clip
from launch.published.labelled import PublishedRun, names_classes_of, published_run
from launch.published.merged import merged_models
from launch.published.pictures import Pictures, ShardPictures, find_pictures
from launch.published.signal import signal_of
from launch.published.solving import Solvers, apart_from
from launch.saved.device import device_and_precision
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.published import TIMM, Published, is_published, open_published
from pipeline.data.shards.loose import found_in, loose_manifest
from pipeline.engine import launched
from pipeline.engine.connect import connect, own_device
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch

BATCH = 64
GIVEN = {
    "data": None,
    "adapter": None,
    "weights": None,
    "no_pretrained": False,
    "img_size": None,
    "signal": None,
}
"""Arguments of a published model -> their defaults."""


def published_of(args: argparse.Namespace) -> str | None:
    """The published model that a command names, or None for runs. Raises ConfigError where its arguments are
    of the one and its name of the other."""
    names = [args.run] if isinstance(args.run, str) else args.run
    if clips := [name for name in names if is_clip(name)]:
        raise ConfigError(f"{clips[0]} is a CLIP, which `dtem evaluate {clips[0]} --zero-shot SHARDS` scores")
    named = [name for name in names if is_published(name)]
    if not named:
        refuse_of_published(args)
        return None
    if len(names) > 1:
        raise ConfigError(f"give {named[0]} alone, without other models or runs")
    if "data" in args and args.data is None:
        raise ConfigError(f"{named[0]} has no data of its own; give --data, a folder of pictures or shards")
    if args.cfg_options or args.checkpoint != "best":
        raise ConfigError("--set and --checkpoint go with a run, not with a published model")
    return named[0]


def refuse_of_published(args: argparse.Namespace) -> None:
    """Raises ConfigError for an argument that says nothing of a run."""
    if given := [name for name, usual in GIVEN.items() if getattr(args, name, usual) != usual]:
        flag = f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"{flag} goes with a published model, such as timm:NAME, not with a run")


def has_labels(source: str, name: str, weights: str | None = None) -> bool:
    """Whether a source has labels for a published model: shards whose samples have a class, or class folders
    that are called as its classes, or are as many where nobody knows how these are called. Raises as
    `find_pictures`."""
    found = find_pictures(source)
    if isinstance(found, ShardPictures):
        return "cls" in found.members
    tree = found_in(source) if name.startswith(TIMM) else None
    return tree is not None and names_classes_of(name, weights, loose_manifest(tree).classes)


def folder_for(name: str, what: str) -> Path:
    """Where results on a published model are written."""
    return Path("published") / plain_name(name) / what


def plain_name(name: str) -> str:
    """A name of a model as one of a folder."""
    last = name.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in last) or "model"


def labelled_run(args: argparse.Namespace, name: str) -> PublishedRun:
    """The published classifier as a run on the command's data, see `published_run`."""
    return published_run(
        name,
        args.data,
        split=args.split,
        adapter=None if args.adapter is None else load_adapter(args.adapter),
        weights=args.weights,
        pretrained=not args.no_pretrained,
        img_size=args.img_size,
    )


def opened(args: argparse.Namespace, name: str) -> tuple[Published, Adapter | None]:
    """The published model of a command's arguments, and its adapter, if there is one."""
    published = open_published(
        name, weights=args.weights, pretrained=not args.no_pretrained, img_size=args.img_size
    )
    return published, None if args.adapter is None else load_adapter(args.adapter)


def solving_of(args: argparse.Namespace, seed: int) -> Solving:
    """On which images a command solves schedules. seed: where none is given. Raises ConfigError, also for an
    argument that says so where none is solved."""
    given = args.solve_on is not None or args.solve_images != IMAGES
    if given and SOLVED not in args.schedules:
        raise ConfigError("--solve-on and --solve-images go with --schedule solved; give it, or not them")
    return Solving(args.solve_on, args.solve_images, seed if args.seed is None else args.seed)


def agreement_on(args: argparse.Namespace, name: str, policies: Sequence[str]) -> Sweep | None:
    """How the merged model agrees with the unmerged one on the command's pictures, of which each process
    reads its part; but on none of those on which schedules are solved. A collective; None on other ranks than
    0."""
    check_schedules(args.schedules)
    pictures = find_pictures(args.data)
    solving = solving_of(args, 0)
    apart = apart_from(pictures, args.data, solving) if SOLVED in args.schedules else None
    device = own_device()
    precision = device_and_precision(None, None)[1]
    published, adapter = opened(args, name)
    seed = 0 if args.seed is None else args.seed
    models = merged_models(published.model.to(device), policies, seed=seed, adapter=adapter)
    signal = signal_of(published, args.signal)

    def read(pictures: Pictures, numbers: Sequence[int], batch_size: int = BATCH) -> Iterator[Batch]:
        workers = min(8, len(os.sched_getaffinity(0)) - 1)
        size, pixels = published.size, published.pixels
        return held_out_batches(pictures, numbers, size, pixels, batch_size=batch_size, workers=workers)

    reported, solve, told = range(len(pictures)), None, {}
    if apart is not None:
        reported, told = apart.reported, {"solved_on": apart.told}
        solve = Solvers(models, signal, list(read(apart.pictures, apart.numbers, AT_ONCE)), device)
    batches = read(pictures, [reported[at] for at in _own_part(len(reported))])
    connect()
    found = agreement(
        models,
        signal,
        progress(batches, "pictures"),
        args.macs,
        name=name,
        split=args.data,
        device=device,
        precision=precision,
        rounds=args.rounds,
        schedules=args.schedules,
        solve=solve,
    )
    return None if found is None else replace(found, conditions=found.conditions | told)


def _own_part(total: int) -> list[int]:
    """Numbers of the pictures of this process: every batch of one process is whole in one of several."""
    starts = range(launched.rank() * BATCH, total, launched.world_size() * BATCH)
    return [number for start in starts for number in range(start, min(start + BATCH, total))]
