"""`dtem predict`: what a model says of your images: classes, captions or masks, and what was merged."""

import argparse

from launch.commands.arguments import (
    NEEDS,
    HelpFormatter,
    add_device_arguments,
    add_measured_reduction_argument,
    add_policy_argument,
    add_run_arguments,
    add_tasks_argument,
)
from launch.commands.published import add_model_arguments

EXAMPLE = """examples:
  dtem predict timm:deit_small_patch16_224.fb_in1k cat.jpg --policy tome --reduction 13
  dtem predict timm:deit_small_patch16_224.fb_in1k photos --adapter adapters/deit_small --out predicted
  dtem predict runs/digits_multitask_dtem photos one.png --task digits_captioning
  dtem predict runs/camvid street.png --out predicted    # masks, overlays, groups and predictions.jsonl
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="classes, captions or masks of your images",
        description=__doc__,
        epilog=EXAMPLE + NEEDS,
        formatter_class=HelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="picture files, or folders of them")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for predictions.jsonl, masks with overlays, and pictures of what was merged",
    )
    add_tasks_argument(parser)
    add_policy_argument(parser)
    add_measured_reduction_argument(parser)
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes of an image (default 5)")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="images at once, of one size (default 16)"
    )
    add_device_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """0 when all images are predicted, 1 where some could not be read. Raises PipelineError."""
    from pathlib import Path

    from launch.predict.command import MOST_ROWS, loaded_for, predict_files, tell_unread
    from launch.predict.files import PREDICTIONS
    from launch.predict.table import COLUMNS
    from launch.published.sources import published_of
    from launch.report.tables import markdown

    published_of(args)  # refuses options of the other kind
    loaded = loaded_for(args, reduction=args.reduction, device=args.device, precision=args.precision)
    out = None if args.out is None else Path(args.out)
    rows, unread, count = predict_files(
        loaded, args.images, out, tasks=args.tasks, top=args.top, batch_size=args.batch_size
    )
    print(f"{loaded.name}, {loaded.device}, {loaded.precision}")
    print(markdown(COLUMNS, rows))
    if count > len(rows):
        print(f"and {count - len(rows)} rows more than the {MOST_ROWS} shown; --out DIR has all")
    if out is not None:
        print(f"wrote {out / PREDICTIONS}")
    tell_unread(unread)
    return 1 if unread else 0
