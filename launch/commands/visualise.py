"""`dtem visualise`: which patches were merged, and what that does to the answers: a page of samples as
HTML and as PNG.

Each group of merged patches has its mean colour and a white border. Beside them stand the answers,
unmerged and merged, and what is true: classes with their probabilities, captions, masks as colours
over the image and the pixels that are wrong. Tasks that are evaluated on the same images share one row.
"""

import argparse

from launch.commands.arguments import (
    NEEDS,
    HelpFormatter,
    add_policy_argument,
    add_reductions_argument,
    add_run_arguments,
    add_split_argument,
    add_tasks_argument,
)
from launch.commands.values import names, numbers

EXAMPLE = """examples:
  dtem visualise runs/digits_multitask_dtem
  dtem visualise runs/digits_multitask_dtem --num 4 --reduction 4,8 --blocks 2,6 --policy tome --animate
  dtem visualise runs/camvid --num 3 --reduction 16,32 --blocks 12
  dtem visualise runs/digits_multitask_dtem --task digits_captioning
"""

GROUPS = "Each group of merged patches has its mean colour and a white border."
LINKED = ("config.json", "metrics.jsonl", "sweep/sweep.json")
"""Files of a run to which its page leads, where they are there."""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "visualise",
        help="draw which patches were merged",
        description=__doc__,
        epilog=EXAMPLE + NEEDS,
        formatter_class=HelpFormatter,
    )
    add_run_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--num", type=int, default=8, metavar="N", help="the first images of the split (default 8)"
    )
    which.add_argument(
        "--keys", type=names, default=[], metavar="K,K", help="the samples with these keys instead"
    )
    add_split_argument(parser)
    add_tasks_argument(parser)
    add_policy_argument(parser)
    add_reductions_argument(parser, "default: the run's")
    parser.add_argument(
        "--blocks",
        type=numbers,
        metavar="I,I",
        help="after which the groups are drawn, counted from 1 (default: three, spread over the depth)",
    )
    parser.add_argument(
        "--animate", action="store_true", help="also write a GIF of the groups, one picture for each block"
    )
    parser.add_argument("--out", metavar="DIR", help="default: RUN/visualise")


def run(args: argparse.Namespace) -> int:
    """0 when the page is written. Raises PipelineError."""
    import os
    from pathlib import Path

    from launch.pictures.animation import write_gif
    from launch.pictures.html_page import write_html
    from launch.pictures.page import Page
    from launch.pictures.png_page import write_png
    from launch.pictures.rows import Choice, make_sections
    from launch.report.words import policy_words
    from launch.saved.run import build, chosen_tasks, parse_reduction, read_run
    from pipeline.errors import counted
    from pipeline.files import folder_within

    reductions = [parse_reduction(text) for text in args.reductions or ()]
    choice = Choice(args.num, args.keys, reductions, args.blocks, args.split, args.animate)
    saved = read_run(args.run, args.checkpoint, args.cfg_options)
    model = build(saved, args.policy)
    tasks = chosen_tasks(saved.config, args.tasks)
    policy = args.policy or saved.config.merging.policy
    datas = {task: saved.config.tasks[task].data for task in tasks}
    classes = {task: saved.classes(task) for task in tasks}
    sections = make_sections(model, datas, choice, classes)
    folder = folder_within(saved.root, "visualise") if args.out is None else Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    count = counted(sum(len(section.rows) for section in sections), "image")
    facts = [f"{saved}, {count} of {args.split}", GROUPS]
    files = {name: saved.root / name for name in LINKED}
    links = {name: os.path.relpath(file, folder) for name, file in files.items() if file.is_file()}
    page = Page(f"{saved.root.name}: {policy_words(policy)}", sections, facts, links)
    stem = folder / (f"groups_{tasks[0]}_{policy}" if len(tasks) == 1 else f"tasks_{policy}")
    written = [write_html(page, stem.with_suffix(".html")), write_png(page, stem.with_suffix(".png"))]
    if args.animate:
        written.append(write_gif(page, stem.with_suffix(".gif")))
    print("wrote " + ", ".join(map(str, written)))
    return 0
