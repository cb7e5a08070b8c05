"""`dtem evaluate`: the scores of a trained run, each sample counted once, on any number of processes."""

import argparse

from launch.arguments import add_run_arguments

EXAMPLE = """examples:
  dtem evaluate runs/digits_demo
  dtem evaluate runs/digits_demo --policy tome --reduction 8 --json scores.json
  torchrun --nproc_per_node 8 -m launch.cli evaluate runs/imagenet --cfg-options tasks.imagenet.data.val=/data/imagenet
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate", help="score a trained run", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawTextHelpFormatter
    )
    add_run_arguments(parser)
    parser.add_argument("--policy", metavar="NAME", help="another merge policy than the run's; NAME_untrained draws its embedding anew")
    parser.add_argument("--reduction", metavar="R", help="8 (per block), 0.9 (keep rate), '(8,-1)' or '[8,8,4]' instead of the run's")
    parser.add_argument("--split", choices=("val", "train"), default="val")
    parser.add_argument("--json", metavar="OUT", help="also write the scores to this file")


def run(args: argparse.Namespace) -> int:
    """0 when the scores are printed. Raises PipelineError."""
    import json
    from pathlib import Path

    from launch.restore import build, checked_reduction, grid_of, parse_reduction, read_run
    from launch.scoring import Evaluator, progress
    from pipeline.data.stream import build_eval_loader
    from pipeline.train.evaluate import evaluate

    saved = read_run(args.run, args.checkpoint, args.cfg_options)
    model = build(saved, args.policy)
    if args.reduction is not None:
        reduction = parse_reduction(args.reduction)
        for task in saved.config.tasks:
            checked_reduction(saved, model, task, reduction)
        model.backbone.set_reduction(reduction)
    evaluator = Evaluator(model, bf16=saved.config.engine.precision == "bf16")
    rank, world_size = evaluator.rank, evaluator.world_size
    loaders = {
        name: build_eval_loader(name, task.data, rank=rank, world_size=world_size, split=args.split)
        for name, task in saved.config.tasks.items()
    }
    model.check_data(loaders)
    scores = evaluate(evaluator, {name: progress(loader, name) for name, loader in loaders.items()})
    if rank != 0:
        return 0
    result = {
        "run": str(saved.folder),
        "step": saved.facts["step"],
        "weights": "ema" if saved.averaged else "last",
        "policy": args.policy or saved.config.merging.policy,
        "schedule": {task: list(model.backbone.schedule(grid_of(saved, model, task))) for task in scores},
        "split": args.split,
        "precision": evaluator.precision,
        "scores": scores,
    }
    print(f"{saved}, policy {result['policy']}, {args.split} split, {evaluator.precision}")
    for task, values in scores.items():
        print(f"{task}: reduction per block {result['schedule'][task]}")
        print(f"{task}: " + "  ".join(f"{name} {value:.6g}" for name, value in values.items()))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=1))
        print(f"wrote {args.json}")
    return 0
