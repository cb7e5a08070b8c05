"""`dtem visualise`: which patches were merged: every image with each group in its mean colour and a border around it."""

import argparse

from launch.arguments import add_run_arguments, numbers

EXAMPLE = """examples:
  dtem visualise runs/digits_demo
  dtem visualise runs/digits_demo --num 4 --reductions 4,8 --blocks 1,5 --policy tome
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "visualise",
        help="draw which patches were merged",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument("--num", type=int, default=8, metavar="N", help="images of the validation split (default 8)")
    parser.add_argument("--task", metavar="NAME", help="default: the run's first")
    parser.add_argument("--policy", metavar="NAME", help="another merge policy than the run's; NAME_untrained draws its embedding anew")
    parser.add_argument("--reductions", type=numbers, metavar="R,R", help="tokens removed per block (default: the run's reduction)")
    parser.add_argument("--blocks", type=numbers, metavar="I,I", help="counted from 0 (default: three, spread over the depth)")
    parser.add_argument("--out", metavar="DIR", help="default: RUN/visualise")


def run(args: argparse.Namespace) -> int:
    """0 when the page is written. Raises PipelineError."""
    from pathlib import Path

    from launch.groups import default_blocks, draw_groups, write_html, write_png
    from launch.restore import build, checked_reduction, read_run
    from pipeline.data.stream import build_eval_loader
    from pipeline.errors import ConfigError

    saved = read_run(args.run, args.checkpoint, args.cfg_options)
    model = build(saved, args.policy)
    task = args.task or next(iter(saved.config.tasks))
    if task not in saved.config.tasks:
        raise ConfigError(f"the run has no task '{task}'; it has {', '.join(saved.config.tasks)}")
    blocks = args.blocks or default_blocks(model.backbone.depth)
    if max(blocks) >= model.backbone.depth:
        raise ConfigError(f"--blocks {max(blocks)}: the backbone's blocks are 0 to {model.backbone.depth - 1}")
    reductions = [checked_reduction(saved, model, task, r) for r in args.reductions] if args.reductions else [None]
    data = saved.config.tasks[task].data
    images = _first_images(build_eval_loader(task, data, rank=0, world_size=1), args.num)
    rows = draw_groups(model.backbone, images, reductions, blocks, data.augment)
    folder = Path(args.out) if args.out else saved.root / "visualise"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"groups_{task}_{args.policy or saved.config.merging.policy}"
    title = f"{saved}, policy {args.policy or saved.config.merging.policy}"
    print(f"wrote {write_png(rows, title, stem.with_suffix('.png'))}, {write_html(rows, title, stem.with_suffix('.html'))}")
    return 0


def _first_images(loader, num: int):
    """[num, 3, H, W], as the model sees them."""
    import torch

    images = []
    for batch in loader:
        images.extend(batch.images)
        if len(images) >= num:
            break
    return torch.stack(images[:num])
