"""`dtem doctor --speed MODEL`: where merging pays on this device, in words, behind a table of what was
measured."""

import argparse
from typing import TYPE_CHECKING

from launch.commands.arguments import add_device_arguments, add_policy_argument, add_reductions_argument
from launch.commands.published import add_model_arguments
from launch.commands.values import compiles, count, numbers

if TYPE_CHECKING:
    import torch

    from launch.bench.entries import Subject

USUAL = {
    "task": None,
    "policy": None,
    "reductions": None,
    "batch_sizes": [1, 8, 64],
    "compile": ["none"],
    "rounds": 20,
    "threads": None,
    "device": None,
    "precision": None,
    "adapter": None,
    "weights": None,
    "no_pretrained": False,
    "img_size": None,
    "out": None,
}
"""Arguments that go with --speed -> their defaults."""
OPTIONS = {"reductions": "reduction"}
"""Arguments -> their options, where these are named otherwise."""


def add_speed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speed",
        metavar="MODEL",
        help="measure where merging pays on this device, and nothing else; MODEL is a run, a config (its "
        "weights are drawn) or a published model such as timm:NAME",
    )
    place = parser.add_argument_group("with --speed")
    place.add_argument("--task", metavar="NAME", help="of a run with several")
    add_policy_argument(place)
    add_reductions_argument(place, "default: four, up to the largest even one")
    place.add_argument(
        "--batch-sizes",
        type=numbers,
        default=[1, 8, 64],
        metavar="N,N",
        help="images at once (default 1,8,64)",
    )
    place.add_argument(
        "--compile", type=compiles, default=["none"], metavar="HOW", help="none (default), blocks or model"
    )
    place.add_argument(
        "--rounds", type=count, default=20, metavar="N", help="timed inferences of each (default 20)"
    )
    place.add_argument("--threads", type=count, metavar="N", help="of the CPU (default: torch's)")
    add_device_arguments(place)
    place.add_argument("--out", metavar="FILE", help="also write all that was measured to this file, as JSON")
    add_model_arguments(parser)


def check_speed_arguments(args: argparse.Namespace) -> None:
    """Raises ConfigError for arguments that do not go together."""
    from pipeline.errors import ConfigError

    if args.speed is None:
        if given := [name for name, usual in USUAL.items() if getattr(args, name) != usual]:
            option = OPTIONS.get(given[0], given[0]).replace("_", "-")
            raise ConfigError(f"--{option} goes with --speed MODEL")
        return
    if not args.speed:
        raise ConfigError("--speed names nothing; give a run, a config, or a model such as timm:NAME")
    if args.hostfile or args.config or args.shards or args.json:
        raise ConfigError(
            "--speed measures, and looks at nothing else: leave --hostfile, --config, --shards and --json "
            "out; --out FILE writes JSON"
        )
    if min(args.batch_sizes) < 1:
        raise ConfigError("--batch-sizes holds 0; give 1 or more")
    if len(args.compile) > 1:
        raise ConfigError("--compile is one of none, model, blocks with --speed; `dtem bench` takes several")


def tell_speed(args: argparse.Namespace) -> int:
    """Prints the table and the verdicts: 0 where merging pays at a batch size, else 1. Raises
    PipelineError."""
    import json

    import torch

    from launch.bench.report import conditions
    from launch.bench.speed import attention_line, speed_of, speed_table, verdict_lines
    from launch.saved.device import device_and_precision
    from pipeline.files import file_place, write_text

    device, precision = device_and_precision(args.device, args.precision)
    out = file_place(args.out) if args.out else None
    if args.threads:
        torch.set_num_threads(args.threads)
    subject, own = _subject(args, device)
    precision = args.precision or own or precision
    facts = speed_of(
        subject,
        args.batch_sizes,
        args.compile[0],
        device=device,
        precision=precision,
        rounds=args.rounds,
    )
    print(conditions(facts))
    print(attention_line(facts))
    print(speed_table(facts))
    for line in verdict_lines(facts):
        print(line)
    if out:
        print(f"wrote {write_text(out, json.dumps(facts, indent=1))}")
    return 0 if any(own["pays"] for own in facts["speed"]) else 1


def _subject(args: argparse.Namespace, device: "torch.device") -> "tuple[Subject, str]":
    """The model that --speed names, and the precision of its run. Its policy is ToMe where neither the
    arguments nor the model have one."""
    from dataclasses import replace
    from pathlib import Path

    from launch.bench.entries import of_published, of_run
    from launch.bench.speed import even_reductions
    from launch.configs.prepared import config_of
    from launch.published.sources import opened, published_of
    from launch.saved.reductions import parse_reduction
    from launch.saved.run import drawn_run, read_run
    from pipeline.backbone.auto_reduction import AUTO
    from pipeline.errors import ConfigError

    args.run, args.checkpoint = args.speed, "best"
    texts = args.reductions or ()
    if auto := [text for text in texts if text.startswith(AUTO)]:
        raise ConfigError(
            f"reduction '{auto[0]}': --speed says of each R in which blocks it pays; give R, without 'auto:'"
        )
    asked = [(text, parse_reduction(text)) for text in texts]
    reductions = dict(asked) if asked else even_reductions
    if published := published_of(args):
        if args.task:
            raise ConfigError(f"--task goes with a run, not with a published model such as {published}")
        model, adapter = opened(args, published)
        policy = args.policy or (None if adapter else "tome")
        return of_published(model, adapter, device, policy=policy, reductions=reductions), ""
    if Path(args.speed).is_dir():
        saved, name = read_run(args.speed, "best", args.cfg_options), ""
    else:
        saved, name = drawn_run(config_of(args.speed, args.cfg_options)), f"{args.speed} (weights drawn)"
    policy = args.policy or ("tome" if saved.config.merging.policy == "none" else None)
    subject = of_run(saved, device, task=args.task, policy=policy, reductions=reductions)
    return replace(subject, name=name or subject.name), saved.config.engine.precision
