"""`dtem export`: the model of a run for other programs, with a card that says what it is."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.commands.arguments import (
    NEEDS,
    HelpFormatter,
    add_measured_reduction_argument,
    add_policy_argument,
    add_run_arguments,
)

if TYPE_CHECKING:
    from pathlib import Path

    from launch.saved.run import SavedRun
    from pipeline.model import MultiTaskModel

EXAMPLE = """examples:
  dtem export runs/digits_multitask_dtem --task digits --out exported  # weights under timm's names
  dtem export runs/digits_multitask_dtem --task digits --out exported --format pt2 --reduction 8
  dtem export runs/digits_multitask_dtem --task digits --out exported --reduction auto@1  # where it pays here
  dtem export runs/digits_multitask_dtem --out exported --task digits_segmentation  # without the other heads
  dtem export runs/digits_multitask_dtem --task digits --out my_adapter --adapter --license apache-2.0
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
        "--out", required=True, metavar="DIR", help="folder for model.FORMAT and model.json; not a run's"
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        "--format",
        choices=FORMATS,
        default="safetensors",
        help="safetensors (default): weights with timm's keys, plus blocks.N.metric.*; for a classifier also "
        "the config.json that timm.create_model('local-dir:DIR', pretrained=True) reads: a model that merges "
        "behind `import dtem`; with --policy none of timm's own\n"
        "pt2, onnx: a program from images of the training crop's size to logits, at one reduction and any "
        "batch size",
    )
    forms.add_argument(
        "--adapter",
        action="store_true",
        help="the metric embeddings alone, with a model card, for others' models (docs/adapters.md)",
    )
    parser.add_argument("--license", metavar="NAME", help="of the adapter, for instance apache-2.0")
    parser.add_argument(
        "--base-model",
        metavar="NAME",
        help="of the adapter's base on the Hugging Face hub; default: timm's, where the run left its weights "
        "as they were",
    )
    parser.add_argument("--task", metavar="NAME", help="default: the run's only one")
    add_policy_argument(parser)
    add_measured_reduction_argument(parser)


def run(args: argparse.Namespace) -> int:
    """0 when the files are written. Raises PipelineError."""
    from pathlib import Path

    from launch.saved.device import device_and_precision
    from launch.saved.reductions import asked_reduction, checked_reduction, measured_reduction
    from launch.saved.run import build, only_task, read_run
    from pipeline.backbone.auto_reduction import Auto
    from pipeline.errors import ConfigError
    from pipeline.model import training_grid
    from pipeline.run_folder import refuse_run

    if not args.adapter and (args.license or args.base_model):
        raise ConfigError("--license and --base-model are said in the card of an adapter; give --adapter")
    asked = None if args.reduction is None else asked_reduction(args.reduction)
    saved = read_run(args.run, args.checkpoint, args.cfg_options)
    if args.adapter and args.policy not in (None, saved.config.merging.policy):
        raise ConfigError("an adapter holds what the run's own policy learned; leave --policy out")
    task = only_task(saved.config, args.task)
    model = build(saved, args.policy)
    if asked is not None:
        grid, (height, width) = (
            training_grid(model.backbone, saved.config.tasks[task]),
            model.backbone.patch_size,
        )
        if isinstance(asked, Auto):
            device, _ = device_and_precision(None, None)
            size = grid[-2] * height, grid[-1] * width
            asked = measured_reduction(model.to(device), task, size, asked)
            print(f"reduction {args.reduction} on {device}: {asked}")
        model.to("cpu").set_reduction(task, checked_reduction(model, grid, asked))
    folder = Path(args.out)
    refuse_run(folder)
    written = (_write_adapter if args.adapter else _write_model)(args, saved, model, task, folder)
    print(f"{saved}\nwrote {', '.join(str(folder / name) for name in written)}")
    return 0


def _write_adapter(
    args: argparse.Namespace, saved: "SavedRun", model: "MultiTaskModel", task: str, folder: "Path"
) -> Sequence[str]:
    """Writes the folder of the run's adapter. Returns the names of its files."""
    from launch.exported.adapter import adapter_of_run
    from pipeline.backbone.adapters.folder import CARD, CONFIG, TENSORS, write_folder

    adapter = adapter_of_run(saved, model, task, base_model=args.base_model, license=args.license)
    write_folder(adapter, folder)
    return TENSORS, CONFIG, CARD


def _write_model(
    args: argparse.Namespace, saved: "SavedRun", model: "MultiTaskModel", task: str, folder: "Path"
) -> Sequence[str]:
    """Writes the model in the chosen format, and what is said of it. Returns the names of the files."""
    import json

    from launch.exported.formats import CARD, CONFIG, WRITERS, fold_embeddings, model_card, timm_config
    from pipeline.files import refuse_link, write_text

    fold_embeddings(model, task)
    path, policy = folder / f"model.{args.format}", args.policy or saved.config.merging.policy
    for place in folder.glob("model*"):
        refuse_link(place)
    WRITERS[args.format](saved, model, task, path)
    beside = {CARD: model_card(saved, model, task, args.format, policy)}
    if args.format == "safetensors" and (config := timm_config(saved, model, task)) is not None:
        beside[CONFIG] = config
    for name, content in beside.items():
        write_text(folder / name, json.dumps(content, indent=1))
    return path.name, *beside
