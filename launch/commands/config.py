"""`dtem config`: what a config resolves to, whether it would start, and how two differ. Nothing is trained,
no weights are loaded, and no sample is read."""

import argparse
import json
import sys

from launch.commands.arguments import (
    HelpFormatter,
    add_config_arguments,
    add_import_argument,
    add_setting_arguments,
)
from launch.commands.list import print_rows
from launch.commands.values import count

EXAMPLES = {
    "show": "dtem config show dtem::debug_cpu.py --set merging.reduction=4",
    "check": "dtem config check dtem::imagenet_deit_small_dtem_modular.py --world-size 8",
    "diff": "dtem config diff dtem::digits_multitask.py dtem::digits_multitask_dtem.py",
    "list": "dtem config list imagenet",
}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "config",
        help="show, check, compare or list configs",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = _action(actions, "show", "print steps, tokens, MACs, parameters, memory, data and settings")
    add_config_arguments(show)
    show.add_argument("--all", action="store_true", help="also the settings that have their defaults")
    show.add_argument("--json", action="store_true", help="print JSON, with all settings")
    check = _action(
        actions, "check", "say whether it would start here; exit code 1 and all reasons where it would not"
    )
    add_config_arguments(check)
    for one in (show, check):
        one.add_argument(
            "--world-size", type=count, default=1, metavar="N", help="ranks that train (default 1)"
        )
        add_import_argument(one)
    diff = _action(actions, "diff", "print the settings that differ; exit code 1 where some do")
    for name in ("one", "other"):
        diff.add_argument(name, metavar="CONFIG_OR_RUN", help="a config, or the folder of a run")
    add_setting_arguments(diff, "of both")
    add_import_argument(diff)
    listed = _action(actions, "list", "list the configs that come with the project")
    listed.add_argument("text", nargs="?", default="", metavar="TEXT", help="only lines that contain it")


def _action(actions, name: str, text: str) -> argparse.ArgumentParser:
    return actions.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=HelpFormatter,
        epilog=f"example: {EXAMPLES[name]}",
    )


def run(args: argparse.Namespace) -> int:
    """0 done; 1 where the run would not start, the configs differ, or no name contains the text. Raises
    PipelineError."""
    return {"show": _show, "check": _check, "diff": _diff, "list": _list}[args.action](args)


def _show(args: argparse.Namespace) -> int:
    from launch.configs.describe import facts_of, lines
    from launch.configs.differences import differences, leaves
    from launch.configs.memory import estimate
    from launch.configs.prepared import config_of, defaults_of, prepare
    from pipeline.config.load import to_saved

    prepared = prepare(config_of(args.config, args.cfg_options), args.world_size)
    facts, settings = facts_of(prepared, estimate(prepared)), to_saved(prepared.config)
    if args.json:
        print(json.dumps({"config": settings, **facts}, indent=1))
        return 0
    print("\n".join(lines(facts)))
    changed = {path for path, _, _ in differences(settings, defaults_of(prepared.config))}
    print("settings" + ("" if args.all else " that differ from their defaults"))
    for path, value in leaves(settings):
        if args.all or any(path == one or path.startswith(f"{one}.") for one in changed):
            print(f"  {path} = {value!r}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from launch.configs.prepared import config_of, prepare
    from pipeline.errors import counted

    prepared = prepare(config_of(args.config, args.cfg_options), args.world_size)
    for refusal in prepared.refusals:
        print(f"{args.config}: {refusal}", file=sys.stderr)
    if not prepared.refusals:
        ranks, steps = counted(args.world_size, "rank"), counted(prepared.resolved.total_steps or 0, "step")
        print(f"{args.config}: would start on {ranks}, {steps}")
    return 1 if prepared.refusals else 0


def _diff(args: argparse.Namespace) -> int:
    from launch.configs.differences import differences, shown
    from launch.configs.prepared import completed_config
    from pipeline.config.load import to_saved
    from pipeline.config.places import same_place

    one, other = (to_saved(completed_config(place, args.cfg_options)) for place in (args.one, args.other))
    found = [
        each for each in differences(one, other) if not same_place(each[0], each[1], None, each[2], None)
    ]
    for path, value, another in found:
        print(f"{path}: {shown(value)} -> {shown(another)}")
    if not found:
        print("the same settings")
    return 1 if found else 0


def _list(args: argparse.Namespace) -> int:
    from launch.configs.names import rows_of

    return print_rows(rows_of("configs", args.text), args.text)
