"""`dtem doctor`: what this machine has and lacks, and the way out of each lack."""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

from launch.checks import machine, packages
from launch.checks.finding import Finding
from launch.commands.arguments import (
    HelpFormatter,
    add_hosts_arguments,
    add_setting_arguments,
    chosen_hosts,
)
from launch.commands.speed import add_speed_arguments, check_speed_arguments, tell_speed
from launch.commands.values import count
from pipeline.errors import ConfigError
from pipeline.extras import command

CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    packages.check_python,
    packages.check_packages,
    packages.check_imports,
    packages.check_mm_families,
    packages.check_tokenizer,
    machine.check_device,
    machine.check_machine,
    machine.check_compiler,
    machine.check_optional_tools,
)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="say what this machine has and lacks",
        description=__doc__,
        epilog="examples:\n  dtem doctor\n  dtem doctor --shards data/digits\n"
        "  dtem doctor --hostfile hosts\n"
        "  dtem doctor --config configs/debug_cpu.py --set engine.type=deepspeed\n"
        "  dtem doctor --speed timm:deit_small_patch16_224 --no-pretrained --batch-sizes 1,8,64\n"
        "  dtem doctor --speed runs/digits_multitask_dtem --task digits --reduction 2,4 --out speed.json\n\n"
        "`dtem shards make digit_scenes data/digits` makes data/digits.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--shards",
        metavar="PATH",
        action="append",
        default=[],
        help="also check that these shards have a manifest that fits",
    )
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        default="",
        help="what this config, or the run of this folder, needs, beside what the machine has",
    )
    add_setting_arguments(parser, "of that config")
    parser.add_argument(
        "--world-size", type=count, default=1, metavar="N", help="ranks of its run (default 1)"
    )
    add_hosts_arguments(parser)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        default="runs/x",
        help="with --hostfile: an `output` that the hosts are to have in common (default: in runs)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_speed_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """0 if nothing needed is missing, else 1. With a hostfile it looks at the hosts alone, and with a config
    at what that needs."""
    if args.cfg_options and not args.config and args.speed is None:
        raise ConfigError("--set goes with --config, or with --speed")
    check_speed_arguments(args)
    if args.speed is not None:
        return tell_speed(args)
    if args.hostfile:
        findings = check_hosts(args)
    elif args.config:
        findings = check_config(args)
    else:
        findings = [finding for check in CHECKS for finding in _answered(check)]
    findings += [check_shards(source) for source in args.shards]
    missing = list(dict.fromkeys(finding.name for finding in findings if finding.status == "missing"))
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return 1 if missing else 0
    for line in table(findings):
        print(line)
    print(f"missing: {', '.join(missing)}" if missing else "nothing that is needed is missing")
    return 1 if missing else 0


def _answered(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of a check; a package that it needs and that is not there is a finding too."""
    try:
        return list(check())
    except ImportError as err:
        return [Finding(check.__name__.removeprefix("check_"), "missing", str(err), command())]


def table(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.status:8}{finding.name:22}{finding.detail}"
        if finding.way_out:
            yield f"{'':30}-> {finding.way_out}"


def check_hosts(args: argparse.Namespace) -> list[Finding]:
    """What is looked at before a launch on several hosts."""
    from launch.cluster.environment import environment
    from launch.cluster.job import Job
    from launch.cluster.preflight import preflight

    hosts, env = tuple(chosen_hosts(args)), environment([], os.environ)
    job = Job(train=(), folder=os.getcwd(), hosts=hosts, env=env, output=args.output)
    return list(preflight(job).findings)


def check_config(args: argparse.Namespace) -> list[Finding]:
    """What a run of this config needs, and the device that it would run on."""
    from launch.configs.needs import needs_of
    from launch.configs.prepared import config_of

    config = config_of(args.config, args.cfg_options)
    return [*_answered(machine.check_device), *needs_of(config, args.world_size)]


def check_shards(source: str) -> Finding:
    from pipeline.data.shards.find import load_manifest
    from pipeline.errors import PipelineError

    try:
        manifest = load_manifest(source)
    except PipelineError as err:
        return Finding("shards", "missing", str(err), f"dtem shards verify {source}")
    return Finding(
        "shards", "ok", f"{source}: {manifest.num_samples} samples in {len(manifest.shards)} shards"
    )
