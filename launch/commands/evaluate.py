"""`dtem evaluate`: the scores of a trained run, each sample counted once, on any number of processes."""

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import (
    NEEDS,
    HelpFormatter,
    add_measured_reduction_argument,
    add_policy_argument,
    add_run_arguments,
    add_split_argument,
    add_tasks_argument,
)
from launch.commands.published import add_source_arguments

if TYPE_CHECKING:  # a command imports what it runs when it runs
    from launch.saved.run import SavedRun
    from pipeline.config.schema import DataConfig, RunConfig
    from pipeline.data.eval_loader import EvalLoader
    from pipeline.interfaces import Scores
    from pipeline.model import MultiTaskModel

EXAMPLE = r"""examples:
  dtem evaluate runs/digits_multitask_dtem
  dtem evaluate runs/digits_multitask_dtem --policy tome --reduction 8 --out scores.json
  dtem evaluate runs/digits_multitask_dtem --task digits,digits_captioning
  dtem evaluate runs/coco --split test --predictions captions.json
  dtem evaluate runs/camvid --predictions masks
  dtem evaluate timm:deit_small_patch16_224.fb_in1k --data data/imagenet
  torchrun --nproc_per_node 8 -m dtem evaluate runs/imagenet \
      --cfg-options tasks.imagenet.data.val=/data/imagenet
  deepspeed --no_local_rank --module dtem evaluate runs/imagenet
  dtem evaluate runs/ade20k --cfg-options tasks.ade20k.head.inference.mode=slide \
      tasks.ade20k.head.inference.crop_size=512 \
      tasks.ade20k.head.inference.stride=341 tasks.ade20k.head.inference.flip=True \
      'tasks.ade20k.head.inference.scales=[0.75,1.0,1.25]'
  dtem evaluate runs/coco --zero-shot data/imagenet --class-names names.json \
      --templates 'a photo of a {}.' 'a drawing of a {}.'
  dtem evaluate open_clip:ViT-B-32@laion2b_s34b_b79k --zero-shot data/imagenet --policy tome --reduction 4
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="score a trained run",
        description=__doc__,
        epilog=EXAMPLE + NEEDS,
        formatter_class=HelpFormatter,
    )
    add_run_arguments(parser)
    add_source_arguments(parser)
    add_tasks_argument(parser)
    add_policy_argument(parser)
    add_measured_reduction_argument(parser)
    add_split_argument(parser)
    parser.add_argument(
        "--zero-shot", metavar="SHARDS", help="also classify these images by a captioner's contrastive part"
    )
    parser.add_argument(
        "--templates",
        nargs="+",
        metavar="TEXT",
        help="captions of a class (default 'a photo of a {}.', for ImageNet's classes CLIP's 80)",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="JSON list of names (default: those of the shards, for ImageNet's CLIP's)",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="exit 0 even where samples could not be read"
    )
    parser.add_argument(
        "--predictions",
        metavar="PATH",
        help="also write what is predicted of each sample: classes as JSON lines, captions as COCO's result "
        "file, masks as a folder of PNG files; for several tasks a folder of these (docs/use.md)",
    )
    parser.add_argument("--out", metavar="FILE", help="also write the scores to this file, as JSON")


def run(args: argparse.Namespace) -> int:
    """0 when the scores are printed and are of all samples, or --allow-missing was given; else 1. Raises
    PipelineError."""
    from launch.measure.compute import first_batch, first_schedule
    from launch.measure.evaluator import evaluator_of, progress
    from launch.measure.recorded import recorded_evaluation
    from launch.measure.where_it_pays import set_measured_reductions
    from launch.saved.reductions import asked_reduction
    from pipeline.backbone.auto_reduction import Auto
    from pipeline.engine import launched
    from pipeline.engine.connect import own_device
    from pipeline.train.evaluate import missing_samples

    asked = None if args.reduction is None else asked_reduction(args.reduction)
    reduction = asked.reduction if isinstance(asked, Auto) else asked
    _check(args)
    rank, device = launched.rank(), own_device()
    saved, model = _model_of(args)
    datas = _data_of(args, saved, model.to(device))
    loaders = _loaders_of(datas, saved, args.split)
    model.check_data(loaders)
    firsts = {name: first_batch(name, data, args.split, saved.classes(name)) for name, data in datas.items()}
    schedules = {name: first_schedule(model, batch, reduction) for name, batch in firsts.items()}
    # by now each process knows that it can begin
    evaluator = evaluator_of(model, saved.config.engine.precision)
    if isinstance(asked, Auto):
        set_measured_reductions(
            evaluator, [firsts[name] for name in datas if name in saved.config.tasks], asked
        )
        reduction = None
        schedules = {name: first_schedule(model, batch, None) for name, batch in firsts.items()}
    bars = {name: progress(loader, name) for name, loader in loaders.items()}
    classes = {name: list(loader.classes) for name, loader in loaders.items()}
    scores, confusion = recorded_evaluation(
        evaluator, bars, args.predictions, classes, reduction=reduction, details=bool(args.out)
    )
    missing = missing_samples(scores, loaders)
    code = 1 if missing and not args.allow_missing else 0
    if rank != 0:
        return code
    result = _head(args, saved, schedules, evaluator.precision) | {
        "scores": scores,
        "missing": missing,
        "samples_of_split": {name: loader.num_stored for name, loader in loaders.items()},
        "ranking": _ranking(model, saved.config, scores),
        "classes": classes,
        "confusion": confusion,
    }
    if isinstance(asked, Auto) and not asked.kept:
        result |= {"measured": {"reduction": args.reduction, "images": asked.batch, "device": str(device)}}
    if args.predictions:
        result |= {"predictions": args.predictions}
    units = {name: model.tasks[name].metric_units for name in scores}
    _report(result, units, str(saved), args.out)
    _tell_missing(missing, {name: loader.num_samples for name, loader in loaders.items()})
    return code


def _loaders_of(datas: "Mapping[str, DataConfig]", saved: "SavedRun", split: str) -> "dict[str, EvalLoader]":
    """Task -> the loader of this process's part of its split."""
    from pipeline.data.stream import build_eval_loader
    from pipeline.engine import launched

    rank, world_size = launched.rank(), launched.world_size()
    return {
        name: build_eval_loader(
            name, data, rank=rank, world_size=world_size, split=split, classes=saved.classes(name)
        )
        for name, data in datas.items()
    }


def _head(
    args: argparse.Namespace, saved: "SavedRun", schedules: Mapping[str, list[int]], precision: str
) -> dict[str, Any]:
    """What was scored, and how. schedules: task -> r per block."""
    return {
        "run": str(saved.folder),
        "step": saved.facts["step"],
        "weights": "ema" if saved.averaged else "last",
        "policy": args.policy or saved.config.merging.policy,
        "schedule": schedules,
        "split": args.split,
        "precision": precision,
    }


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for options that do not go together, and for an --out that is no place of a file."""
    from pipeline.errors import ConfigError
    from pipeline.files import file_place

    if not args.zero_shot and (args.templates or args.class_names):
        raise ConfigError("--templates and --class-names say what --zero-shot compares; give it, with images")
    if args.out:
        file_place(args.out)


def _data_of(args: argparse.Namespace, saved: "SavedRun", model: "MultiTaskModel") -> "dict[str, DataConfig]":
    """Task -> its data. --zero-shot adds a task to the model."""
    from launch.published.contrastive import is_clip
    from launch.saved.run import chosen_tasks
    from launch.saved.zero_shot import add_zero_shot

    found = {name: saved.config.tasks[name].data for name in chosen_tasks(saved.config, args.tasks)}
    if args.zero_shot and not is_clip(args.run):
        name, data = add_zero_shot(
            model, saved.config, args.zero_shot, args.split, args.templates, args.class_names
        )
        found[name] = data
    return found


def _model_of(args: argparse.Namespace) -> "tuple[SavedRun, MultiTaskModel]":
    """What is scored: a run, or a published model in place of one."""
    from launch.published.contrastive import is_clip, zero_shot_run
    from launch.published.sources import labelled_run, published_of
    from launch.saved.run import build, read_run

    if is_clip(args.run):
        return zero_shot_run(args)
    published = published_of(args)
    saved = (
        labelled_run(args, published) if published else read_run(args.run, args.checkpoint, args.cfg_options)
    )
    return saved, build(saved, args.policy, compiled=True)


def _tell_missing(missing: dict[str, int], of: dict[str, int]) -> None:
    for name, count in missing.items():
        print(
            f"{name}: {count} of {of[name]} samples could not be read, and are not in these scores",
            file=sys.stderr,
        )


def _ranking(model: "MultiTaskModel", config: "RunConfig", scores: "dict[str, Scores]") -> dict[str, Any]:
    """The score that ranks checkpoints, and the main metrics from which it is computed."""
    from pipeline.train.evaluate import ranking_score

    of_all = {name: scores.get(name, {}) for name in config.tasks}
    return {
        "of": config.train.best or "geometric mean",
        "main_metrics": {name: model.tasks[name].main_metric for name in config.tasks},
        "score": ranking_score(model, of_all, config.train.best),
    }


def _report(result: dict[str, Any], units: dict[str, Mapping[str, str]], run: str, path: str | None) -> None:
    """Prints the scores, the whole ones behind those of classes, and writes them. units: task -> its
    metrics' units."""
    import json
    from pathlib import Path

    from launch.measure.scores import of_classes
    from launch.report.tables import class_table, most_confused
    from pipeline.files import write_text

    print(f"{run}, policy {result['policy']}, {result['split']} split, {result['precision']}")
    for task, values in result["scores"].items():
        whole = {name: value for name, value in values.items() if name not in of_classes(values)}
        print(f"{task}: reduction per block {result['schedule'][task]}")
        if table := class_table(values, result["classes"][task]):
            print(table)
        unit = "pixel" if any(name.startswith("IoU/") for name in values) else "sample"
        for line in most_confused(result["confusion"].get(task, []), result["classes"][task], unit):
            print(f"{task}: {line}")
        print(f"{task}: " + "  ".join(_said(name, value, units[task]) for name, value in whole.items()))
    if (ranking := result["ranking"])["score"] is not None and len(ranking["main_metrics"]) > 1:
        print(_ranked(ranking, result["scores"], units))
    if "predictions" in result:
        print(f"wrote {result['predictions']}")
    if path:
        place, text = Path(path), json.dumps(result, indent=1)
        # a pipe stays one
        if place.exists() and not place.is_file():
            place.write_text(text)
        else:
            write_text(place, text)
        print(f"wrote {path}")


def _said(metric: str, value: float | None, units: Mapping[str, str]) -> str:
    """A score in its unit."""
    if value is None:
        return f"{metric} n/a"
    return f"{metric} {100 * value:.2f} %" if units.get(metric) == "%" else f"{metric} {value:.6g}"


def _ranked(ranking: dict[str, Any], scores: dict[str, Any], units: dict[str, Mapping[str, str]]) -> str:
    """A line about the score that ranks checkpoints, and the main metrics from which it is computed."""
    metrics = ranking["main_metrics"]
    values = {
        task: f"{task} {_said(metric, scores[task][metric], units[task])}"
        for task, metric in metrics.items()
        if task in scores
    }
    if ranking["of"] in values:
        return f"checkpoints are ranked by {values[ranking['of']]}"
    return (
        f"checkpoints are ranked by the {ranking['of']} of {', '.join(values.values())}: "
        f"{ranking['score']:.6g}"
    )
