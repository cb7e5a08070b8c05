"""`dtem visualise`: which patches were merged: every image with each group in its mean colour and a border
around it.

Beside it what is right and what is predicted, unmerged and merged: class and probability, masks as colours
over the image, captions. Tasks that are evaluated on the same images share one row for each.
"""

import argparse

from launch.commands.arguments import (
    NEEDS,
    HelpFormatter,
    add_policy_argument,
    add_run_arguments,
    add_split_argument,
    numbers,
)

EXAMPLE = """examples:
  dtem visualise runs/digits_multitask_dtem
  dtem visualise runs/digits_multitask_dtem --num 4 --reductions 4,8 --blocks 1,5 --policy tome
  dtem visualise runs/camvid --num 3 --reductions 16,32 --blocks 11
  dtem visualise runs/digits_multitask_dtem --task digits_captioning
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "visualise",
        help="draw which patches were merged",
        description=__doc__,
        epilog=EXAMPLE + NEEDS,
        formatter_class=HelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument("--num", type=int, default=8, metavar="N", help="images of the split (default 8)")
    add_split_argument(parser)
    parser.add_argument("--task", metavar="NAME", help="default: all, on one page")
    add_policy_argument(parser)
    parser.add_argument(
        "--reductions",
        type=numbers,
        metavar="R,R",
        help="tokens removed per block (default: the run's reduction)",
    )
    parser.add_argument(
        "--blocks", type=numbers, metavar="I,I", help="counted from 0 (default: three, spread over the depth)"
    )
    parser.add_argument("--out", metavar="DIR", help="default: RUN/visualise")


def run(args: argparse.Namespace) -> int:
    """0 when the page is written. Raises PipelineError."""
    from pathlib import Path

    from launch.pictures.page import write_html, write_png
    from launch.pictures.rows import make_page
    from launch.saved.run import build, chosen_tasks, read_run
    from pipeline.files import folder_within

    saved = read_run(args.run, args.checkpoint, args.cfg_options)
    model = build(saved, args.policy)
    tasks = chosen_tasks(saved.config, [args.task] if args.task else None)
    policy = args.policy or saved.config.merging.policy
    title = f"{saved}, policy {policy}"
    datas = {task: saved.config.tasks[task].data for task in tasks}
    shown = dict(num=args.num, reductions=args.reductions, blocks=args.blocks, split=args.split)
    page = make_page(model, datas, title, **shown, classes={task: saved.classes(task) for task in tasks})
    folder = folder_within(saved.root, "visualise") if args.out is None else Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / (f"groups_{tasks[0]}_{policy}" if len(tasks) == 1 else f"tasks_{policy}")
    print(f"wrote {write_png(page, stem.with_suffix('.png'))}, {write_html(page, stem.with_suffix('.html'))}")
    return 0
