"""What `dtem sweep` and `dtem board` measure: runs, a published model on labels, or one on pictures
without."""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from launch.measure.evaluator import progress
from launch.measure.planning import Aims
from launch.measure.points import FOUND, LeftOut, Sweep
from launch.measure.solving import AT_ONCE, IMAGES, Solving
from launch.measure.sweep import sweep
from launch.published.agreement import agreement
from launch.published.batches import held_out_batches
from launch.published.merged import merged_models
from launch.published.pictures import Pictures, find_pictures
from launch.published.signal import signal_of
from launch.published.solving import Finders, apart_from
from launch.published.sources import folder_for, has_labels, labelled_run, opened
from launch.saved.device import device_and_precision
from launch.saved.run import SavedRun, read_run
from pipeline.backbone.published import Published
from pipeline.engine import launched
from pipeline.engine.connect import connect, own_device
from pipeline.errors import ConfigError
from pipeline.files import folder_within
from pipeline.interfaces import Batch

BATCH = 64


def runs_named(args: argparse.Namespace, published: str | None) -> list[SavedRun]:
    """The runs of a command that takes several, or the published model on labels as a run; none for a
    published model on pictures without labels, or whose signal is asked for. Raises ConfigError and
    CheckpointError."""
    if published is None:
        return [read_run(path, args.checkpoint, args.cfg_options) for path in args.run]
    if args.signal is None and has_labels(args.data, published, args.weights):
        return [labelled_run(args, published)]
    return []


def result_folder(
    args: argparse.Namespace, published: str | None, runs: Sequence[SavedRun], what: str
) -> Path | None:
    """The folder of a command's results, which is made before the work, on rank 0; None on the others."""
    if launched.rank() > 0:
        return None
    if args.out:
        folder = Path(args.out)
    else:
        folder = folder_for(published, what) if published else folder_within(runs[0].root, what)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def measured_on(
    args: argparse.Namespace,
    published: str | None,
    runs: Sequence[SavedRun],
    policies: Sequence[str],
    aims: Aims,
    *,
    seeds: Sequence[int] | None = None,
    compared: bool = False,
    lenient: bool = False,
) -> list[Sweep]:
    """The sweep of each task: of the runs, or of a published model on pictures without labels. Options are
    those of `launch.measure.sweep`. A collective; there are none on other ranks than 0."""
    if published is not None and not runs:
        _refuse_of_labels(args)
        found = agreement_on(
            args, published, policies, aims, seeds=seeds or (0,), compared=compared, lenient=lenient
        )
        return [] if found is None else [found]
    return sweep(
        runs,
        policies,
        aims,
        solving=solving_of(args, seeds[0] if seeds else runs[0].config.seed),
        split=args.split,
        seeds=seeds,
        rounds=args.rounds,
        tasks=args.tasks,
        compared=compared,
        lenient=lenient,
    )


def _refuse_of_labels(args: argparse.Namespace) -> None:
    """Raises ConfigError for arguments that choose among labels."""
    given = {"--task": args.tasks is not None, "--split": args.split != "val"}
    if wrong := [flag for flag, is_given in given.items() if is_given]:
        raise ConfigError(
            f"agreement with the unmerged model is measured on all pictures of {args.data}, without labels: "
            f"leave {' and '.join(wrong)} out"
        )


def solving_of(args: argparse.Namespace, seed: int) -> Solving:
    """On which images a command finds schedules. Raises ConfigError, also for an argument that says so where
    none is solved."""
    given = args.solve_on is not None or args.solve_images != IMAGES
    if given and set(FOUND).isdisjoint(args.schedules):
        raise ConfigError(
            "--solve-on and --solve-images go with --schedule solved or learned; give one, or not them"
        )
    return Solving(args.solve_on, args.solve_images, seed)


def agreement_on(
    args: argparse.Namespace,
    name: str,
    policies: Sequence[str],
    aims: Aims,
    *,
    seeds: Sequence[int],
    compared: bool,
    lenient: bool,
) -> Sweep | None:
    """How the merged model agrees with the unmerged one on the command's pictures, of which each process
    reads its part; but on none of those on which schedules are found. Options are those of `measured_on`."""
    pictures = find_pictures(args.data)
    solving = solving_of(args, seeds[0])
    apart = apart_from(pictures, args.data, solving) if aims.finds else None
    device = own_device()
    precision = device_and_precision(None, None)[1]
    published, adapter = opened(args, name)
    refused: list[LeftOut] | None = [] if lenient else None
    base = published.model.to(device)
    models = merged_models(base, policies, seeds=seeds, adapter=adapter, left_out=refused)
    signal = signal_of(published, args.signal)
    reported, find, told = range(len(pictures)), None, {}
    if apart is not None:
        reported, told = apart.reported, {"solved_on": apart.told}
        firsts = {policy: own[0] for policy, own in models.items()}
        solve_on = list(_batches(published, apart.pictures, apart.numbers, AT_ONCE))
        find = Finders(firsts, signal, solve_on, device)
    batches = _batches(published, pictures, [reported[at] for at in _own_part(len(reported))])
    connect()
    found = agreement(
        models,
        signal,
        progress(batches, "pictures"),
        aims,
        name=name,
        split=args.data,
        device=device,
        precision=precision,
        rounds=args.rounds,
        find=find,
        seeds=seeds,
        compared=compared,
        left_out=refused or [],
    )
    return None if found is None else replace(found, conditions=found.conditions | told)


def _batches(
    published: Published, pictures: Pictures, numbers: Sequence[int], size: int = BATCH
) -> Iterator[Batch]:
    """The pictures of these numbers as the model reads them, `size` of them at once."""
    workers = min(8, len(os.sched_getaffinity(0)) - 1)
    return held_out_batches(
        pictures, numbers, published.size, published.pixels, batch_size=size, workers=workers
    )


def _own_part(total: int) -> list[int]:
    """Numbers of the pictures of this process: every batch of one process is whole in one of several."""
    starts = range(launched.rank() * BATCH, total, launched.world_size() * BATCH)
    return [number for start in starts for number in range(start, min(start + BATCH, total))]
