"""`dtem bench`: latency of a model, merged and unmerged side by side, for several batch sizes."""

import argparse

from launch.commands.arguments import (
    NEEDS,
    HelpFormatter,
    add_device_arguments,
    add_measured_reduction_argument,
    add_policy_argument,
    add_run_arguments,
)
from launch.commands.published import add_model_arguments
from launch.commands.values import compiles, numbers

EXAMPLE = """examples:
  dtem bench runs/digits_multitask_dtem --task digits
  dtem bench timm:deit_small_patch16_224 --no-pretrained --policy tome --reduction 13 --batch-sizes 1,8,64
  dtem bench timm:deit_small_patch16_224 --no-pretrained --policy tome --reduction auto:13@8 --batch-sizes 8
  dtem bench timm:deit_small_patch16_224 --no-pretrained --policy tome --reduction 13 --compile none,model \\
      --out bench.json
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="latency of a model, merged and unmerged",
        description=__doc__,
        epilog=EXAMPLE + NEEDS,
        formatter_class=HelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument("--task", metavar="NAME", help="of a run with several")
    add_policy_argument(parser)
    add_measured_reduction_argument(parser)
    parser.add_argument(
        "--batch-sizes", type=numbers, default=[1, 8], metavar="N,N", help="images at once (default 1,8)"
    )
    parser.add_argument(
        "--compile",
        type=compiles,
        default=["none"],
        metavar="HOW,HOW",
        help="none (default), blocks, model: torch.compile of the encoder, of a published model of all of "
        "it; it takes about a minute for each batch size on a CPU",
    )
    parser.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="timed inferences of each (default 20)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: torch's)")
    add_device_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="also write all latencies to this file, as JSON")


def run(args: argparse.Namespace) -> int:
    """0 when the table is printed. Raises PipelineError."""
    import json

    import torch

    from launch.bench.entries import MERGED, of_published, of_run
    from launch.bench.latency import latencies
    from launch.bench.report import conditions, facts_of, table
    from launch.published.sources import opened, published_of
    from launch.saved.device import device_and_precision
    from launch.saved.reductions import asked_reduction
    from launch.saved.run import read_run
    from pipeline.engine.model_on_device import autocast
    from pipeline.errors import ConfigError
    from pipeline.files import file_place, write_text

    for name, value in (("--rounds", args.rounds), ("--threads", args.threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; give 1 or more")
    if min(args.batch_sizes) < 1:
        raise ConfigError("--batch-sizes holds 0; give 1 or more")
    reduction = None if args.reduction is None else asked_reduction(args.reduction)
    device, precision = device_and_precision(args.device, args.precision)
    merge = dict(policy=args.policy, reductions={MERGED: reduction})
    out = file_place(args.out) if args.out else None
    if args.threads:
        torch.set_num_threads(args.threads)
    if published := published_of(args):
        if args.task:
            raise ConfigError(f"--task goes with a run, not with a published model such as {published}")
        model = opened(args, published)
        with autocast(device, precision):
            subject = of_published(*model, device, **merge)
    else:
        saved = read_run(args.run, args.checkpoint, args.cfg_options)
        precision = args.precision or saved.config.engine.precision
        with autocast(device, precision):
            subject = of_run(saved, device, task=args.task, **merge)
    found = latencies(
        subject, args.batch_sizes, args.compile, device=device, precision=precision, rounds=args.rounds
    )
    facts = facts_of(subject, found, device=device, precision=precision)
    print(conditions(facts))
    print(table(facts))
    if out:
        print(f"wrote {write_text(out, json.dumps(facts, indent=1))}")
    return 0
