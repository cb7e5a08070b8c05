"""`dtem export`: the model of a run for other programs, with a card that says what it is."""

import argparse

from launch.commands.arguments import (
    NEEDS,
    HelpFormatter,
    add_policy_argument,
    add_reduction_argument,
    add_run_arguments,
)

EXAMPLE = """examples:
  dtem export runs/digits_multitask_dtem --task digits --to exported  # weights under timm's names
  dtem export runs/digits_multitask_dtem --task digits --to exported --format pt2 --reduction 8
  dtem export runs/digits_multitask_dtem --to exported --task digits_segmentation    # without the other heads
"""
FORMATS = ("safetensors", "pt2", "onnx")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a run's model for other programs",
        description=__doc__,
        epilog=EXAMPLE + NEEDS,
        formatter_class=HelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--to", required=True, metavar="OUT", help="folder for model.FORMAT and model.json; not a run's"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="safetensors",
        help="safetensors (default): weights with timm's keys, plus blocks.N.metric.*; for a classifier also "
        "the config.json that timm.create_model('local-dir:OUT', pretrained=True) reads (unmerged model)\n"
        "pt2, onnx: a program from images of the training crop's size to logits, at one reduction and any "
        "batch size",
    )
    parser.add_argument("--task", metavar="NAME", help="default: the run's only one")
    add_policy_argument(parser)
    add_reduction_argument(parser)


def run(args: argparse.Namespace) -> int:
    """0 when the files are written. Raises PipelineError."""
    import json
    from pathlib import Path

    from launch.exported.formats import WRITERS, fold_embeddings, model_card, timm_config
    from launch.saved.run import build, checked_reduction, only_task, parse_reduction, read_run
    from pipeline.errors import ConfigError
    from pipeline.files import refuse_link, write_text
    from pipeline.model import training_grid

    saved = read_run(args.run, args.checkpoint, args.cfg_options)
    task = only_task(saved.config, args.task)
    model = build(saved, args.policy)
    if args.reduction is not None:
        grid = training_grid(model.backbone, saved.config.tasks[task])
        model.set_reduction(task, checked_reduction(model, grid, parse_reduction(args.reduction)))
    fold_embeddings(model, task)
    folder = Path(args.to)
    if (folder / "checkpoints").exists() or (folder / "manifest.json").exists():
        raise ConfigError(
            f"--to {folder} is the folder of a run or of a checkpoint, whose files have the same names; "
            "give another"
        )
    path, policy = folder / f"model.{args.format}", args.policy or saved.config.merging.policy
    for place in folder.glob("model*"):
        refuse_link(place)
    WRITERS[args.format](saved, model, task, path)
    beside = {"model.json": model_card(saved, model, task, args.format, policy)}
    if args.format == "safetensors" and (config := timm_config(saved, model, task)) is not None:
        beside["config.json"] = config
    for name, content in beside.items():
        write_text(folder / name, json.dumps(content, indent=1))
    print(f"{saved}\nwrote {', '.join(str(folder / name) for name in (path.name, *beside))}")
    return 0
