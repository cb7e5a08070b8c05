"""`dtem predict`, once its arguments are read, and what `dtem visualise --images` shares with it."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from launch.predict.files import PREDICTIONS, Writer
from launch.predict.images import Picture, files_of, pictures_of
from launch.predict.loaded import LoadedRun, load_run
from launch.predict.results import Mask, Prediction, Unread
from launch.predict.table import row_of
from pipeline.errors import counted, first_few, printable
from pipeline.files import refuse_link, replacing

MOST_ROWS = 1000
"""Rows of the table. predictions.jsonl has all."""


def loaded_for(args: argparse.Namespace, **own: Any) -> LoadedRun:
    """The run or published model that a command names for `args.images`. own: other arguments of `load_run`.
    Raises PipelineError, for images that are not there before anything heavy."""
    for _ in files_of(args.images):
        pass
    return load_run(
        args.run,
        checkpoint=args.checkpoint,
        overrides=args.cfg_options,
        policy=args.policy,
        adapter=args.adapter,
        weights=args.weights,
        pretrained=not args.no_pretrained,
        img_size=args.img_size,
        **own,
    )


def predict_files(
    run: LoadedRun, paths: list[str], out: Path | None, **options: Any
) -> tuple[list[tuple[str, str, str]], list[Unread], int]:
    """The first rows of the table, the images that could not be read, and how many predictions there are.
    All are written to the folder `out`, if there is one. options: those of `LoadedRun.stream`."""
    rows: list[tuple[str, str, str]] = []
    unread: list[Unread] = []
    count = 0
    writer: Writer | None = None
    with ExitStack() as stack:
        for found in _told(run, paths, groups=out is not None, **options):
            if len(rows) < MOST_ROWS:
                rows.append(row_of(found))
            if isinstance(found, Unread):
                unread.append(found)
            count += 1
            if out is not None:
                # only now, as what is wrong with the options shows at the first image
                writer = writer or _writer(out, stack)
                writer.add(found, _pixels_of(found) if isinstance(found, Mask) else None)
    return rows, unread, count


def _writer(out: Path, stack: ExitStack) -> Writer:
    refuse_link(out)
    out.mkdir(parents=True, exist_ok=True)
    part = stack.enter_context(replacing(out / PREDICTIONS))
    return Writer(out, stack.enter_context(part.open("w", encoding="utf-8")))


def _told(run: LoadedRun, paths: list[str], **options: Any) -> Iterator[Prediction | Unread]:
    """The predictions, with a progress bar that counts images where there is a terminal."""
    before = None
    with tqdm(total=sum(1 for _ in files_of(paths)), desc="images", leave=False, disable=None) as bar:
        for found in run.stream(paths, **options):
            if found.image != before:
                bar.update()
            before = found.image
            yield found


def _pixels_of(found: Mask) -> np.ndarray | None:
    """uint8 [H, W, 3] of the image of a mask, read once more: what is to be drawn need not be kept. None
    where it has gone since."""
    for picture in pictures_of(found.image):
        if isinstance(picture, Picture) and picture.pixels.shape[1:] == found.labels.shape:
            return picture.pixels.permute(1, 2, 0).numpy()
    return None


def tell_unread(unread: list[Unread]) -> None:
    """Names and counts the images that could not be read, on the error stream."""
    if unread:
        named = first_few([printable(f"{own.image} ({own.reason})") for own in unread], 10)
        print(f"{counted(len(unread), 'image')} could not be read: {named}", file=sys.stderr)
