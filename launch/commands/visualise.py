"""`dtem visualise`: which patches were merged, and what that does to the answers: a page of samples as
HTML and as PNG.

Each group of merged patches has its mean colour and a white border. Beside them stand the answers,
unmerged and merged, and what is true: classes with their probabilities, captions, masks as colours
over the image and the pixels that are wrong. Tasks that are evaluated on the same images share one row.
With --images they are pictures of your own, of which nothing is known; so a published classifier can be
drawn too.
"""

import argparse
from typing import TYPE_CHECKING

from launch.commands.arguments import (
    NEEDS,
    HelpFormatter,
    add_policy_argument,
    add_reductions_argument,
    add_run_arguments,
    add_split_argument,
    add_tasks_argument,
)
from launch.commands.published import add_model_arguments
from launch.commands.values import names, numbers

if TYPE_CHECKING:  # a command imports what it runs when it runs
    from collections.abc import Sequence
    from pathlib import Path

    from launch.pictures.page import Page, Section
    from launch.pictures.rows import Choice
    from launch.predict.results import Unread
    from launch.saved.run import SavedRun

EXAMPLE = """examples:
  dtem visualise runs/digits_multitask_dtem
  dtem visualise runs/digits_multitask_dtem --num 4 --reduction 4,8 --blocks 2,6 --policy tome --animate
  dtem visualise runs/camvid --num 3 --reduction 16,32 --blocks 12
  dtem visualise runs/digits_multitask_dtem --task digits_captioning
  dtem visualise runs/camvid --images street.png photos --reduction 16,32
  dtem visualise timm:deit_small_patch16_224.fb_in1k --images photos --policy tome --reduction 8,13
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
    which.add_argument(
        "--images", nargs="+", metavar="PATH", help="picture files, or folders of them, in place of samples"
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
    parser.add_argument("--out", metavar="DIR", help="default: RUN/visualise; published/NAME/visualise")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """0 when the page is written, 1 where images of one's own could not be read. Raises PipelineError."""
    from launch.pictures.animation import write_gif
    from launch.pictures.html_page import write_html
    from launch.pictures.png_page import write_png
    from launch.pictures.rows import Choice
    from launch.predict.command import tell_unread
    from launch.saved.reductions import parse_reduction

    reductions = [parse_reduction(text) for text in args.reductions or ()]
    choice = Choice(args.num, args.keys, reductions, args.blocks, args.split, args.animate)
    page, stem, unread = _of_images(args, choice) if args.images else _of_samples(args, choice)
    written = [write_html(page, stem.with_suffix(".html")), write_png(page, stem.with_suffix(".png"))]
    if args.animate:
        written.append(write_gif(page, stem.with_suffix(".gif")))
    print("wrote " + ", ".join(map(str, written)))
    tell_unread(unread)
    return 1 if unread else 0


def _of_samples(args: argparse.Namespace, choice: "Choice") -> "tuple[Page, Path, list[Unread]]":
    """The page of a split's samples, and its path without an ending."""
    from launch.pictures.rows import make_sections
    from launch.published.sources import refuse_of_published
    from launch.saved.run import build, chosen_tasks, read_run
    from pipeline.backbone.published import is_published
    from pipeline.errors import ConfigError, counted

    if is_published(args.run):
        raise ConfigError(f"{args.run} has no samples of its own; give --images, pictures or folders of them")
    refuse_of_published(args)
    saved = read_run(args.run, args.checkpoint, args.cfg_options)
    model = build(saved, args.policy)
    tasks = chosen_tasks(saved.config, args.tasks)
    policy = args.policy or saved.config.merging.policy
    datas = {task: saved.config.tasks[task].data for task in tasks}
    classes = {task: saved.classes(task) for task in tasks}
    sections = make_sections(model, datas, choice, classes)
    count = counted(sum(len(section.rows) for section in sections), "image")
    page, stem = _placed(args, saved, f"{count} of {args.split}", sections, tasks, policy)
    return page, stem, []


def _of_images(args: argparse.Namespace, choice: "Choice") -> "tuple[Page, Path, list[Unread]]":
    """The same of pictures of one's own."""
    from launch.pictures.own_images import check_merges, sections_of_images
    from launch.predict.command import loaded_for
    from pipeline.errors import counted

    loaded = loaded_for(args, precision="fp32")
    check_merges(loaded, choice.reductions)
    tasks = loaded.chosen(args.tasks)
    sections, unread = sections_of_images(loaded, args.images, tasks, choice)
    count = counted(len(sections[0].rows), "image")
    saved = getattr(loaded.predicting, "run", None)
    return *_placed(args, saved, count, sections, tasks, loaded.predicting.policy), unread


def _placed(
    args: argparse.Namespace,
    saved: "SavedRun | None",
    told: str,
    sections: "list[Section]",
    tasks: "Sequence[str]",
    policy: str,
) -> "tuple[Page, Path]":
    """The page, and its path without an ending. saved: None for a published model. told: which images."""
    import os
    from pathlib import Path

    from launch.pictures.page import Page
    from launch.published.sources import folder_for
    from launch.report.words import policy_words
    from pipeline.files import folder_within

    if args.out is not None:
        folder = Path(args.out)
    else:
        folder = folder_within(saved.root, "visualise") if saved else folder_for(args.run, "visualise")
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: saved.root / name for name in LINKED} if saved else {}
    links = {name: os.path.relpath(file, folder) for name, file in files.items() if file.is_file()}
    name = saved.root.name if saved else args.run
    facts = [f"{saved or args.run}, {told}", GROUPS]
    page = Page(f"{name}: {policy_words(policy)}", sections, facts, links)
    kind = "images" if args.images else "groups" if len(tasks) == 1 else "tasks"
    return page, folder / (f"{kind}_{tasks[0]}_{policy}" if len(tasks) == 1 else f"{kind}_{policy}")
