"""Arguments that several commands share. Imports nothing heavy, so that `--help` answers at once."""

import argparse
import os
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from launch.commands.values import FORMS, names, reductions

if TYPE_CHECKING:
    from launch.cluster.hosts import Host

NEEDS = """
runs/digits_multitask_dtem comes from `make demo`; the other folders stand for your own.
"""
"""What the examples need; it stands below them."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps each line of an option's text to the terminal; leaves description and examples as they are."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [
            part
            for line in text.splitlines()
            for part in textwrap.wrap(line, width, break_on_hyphens=False, break_long_words=False)
        ]


def add_run_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    nargs = "+" if several else None
    parser.add_argument("run", metavar="RUN", nargs=nargs, help="folder of a run, or of one checkpoint")
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="NAME",
        help="best (default), last, or a name such as step_00000500",
    )
    add_setting_arguments(parser, "of the run's config, for instance tasks.imagenet.data.val=/data/imagenet")
    add_import_argument(parser)


def add_setting_arguments(parser: argparse.ArgumentParser, which: str) -> None:
    """Changes of a config, as `cfg_options`. which: the fields that are changed, with an example."""
    parser.add_argument(
        "--set",
        dest="cfg_options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"replace a field {which}; KEY+=VALUE appends to a list; repeatable",
    )
    parser.add_argument(
        "--cfg-options",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="the same, for several fields behind one another",
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The config, as `config`, and changes of it."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        default=argparse.SUPPRESS,
        help="a config (.py), the config.json of an earlier run, or the name of a config that comes with the "
        "project, such as dtem::debug_cpu.py",
    )
    which.add_argument(
        "--config",
        dest="config",
        metavar="CONFIG",
        default=argparse.SUPPRESS,
        help="the same, as launchers give it",
    )
    add_setting_arguments(parser, "of the config, for instance optim.lr=1e-3")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What is trained, and what it continues."""
    add_config_arguments(parser)
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--resume",
        default="auto",
        metavar="auto|extend|none|PATH",
        help="auto: continue the run's last checkpoint, if any (default)\n"
        "extend: so too with other settings, each of which is said (more steps, another lr, batch or data)\n"
        "none: start anew; refused where `output` holds checkpoints\n"
        "PATH: continue this run's folder or checkpoint, or the URL of its mirror;\n"
        "      later checkpoints in `output` are set aside",
    )
    begin.add_argument(
        "--overwrite",
        dest="resume",
        action="store_const",
        const="overwrite",
        default=argparse.SUPPRESS,
        help="start anew where `output` holds a run, which is kept in a folder of it, aside-1",
    )
    parser.add_argument(
        "--inject",
        action="append",
        default=[],
        metavar="FAULT",
        help="put a fault into the run, to rehearse: kill@step=30,rank=1 (docs/reliability.md);\n"
        "repeat it for more",
    )


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="first import this module of yours; repeatable",
    )


def add_verbose_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log more, and show where in the code an error is found",
    )


def add_hosts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hostfile", metavar="FILE", help="hosts with a line `[USER@]HOST slots=N [port=P]` each"
    )
    for flag, what in (("--include", "only these"), ("--exclude", "all but these")):
        parser.add_argument(
            flag, default="", metavar="HOST[:SLOTS]", help=f"{what}, as in node1@node2:0,2; of the hostfile"
        )
    parser.add_argument("--ssh-port", metavar="P", help="of hosts whose line names none")
    parser.add_argument("--ssh-user", metavar="USER", help="on hosts whose line names none")


def chosen_hosts(args: argparse.Namespace) -> "list[Host]":
    """The hosts that `add_hosts_arguments` name; none without a hostfile. Raises ConfigError."""
    from launch.cluster import hosts

    port = hosts.check_number("--ssh-port", args.ssh_port, hosts.LARGEST_PORT) if args.ssh_port else None
    user = hosts.check_user(args.ssh_user) if args.ssh_user else None
    return hosts.with_ssh(hosts.hostfile_of(args.hostfile, args.include, args.exclude), user, port)


def import_modules(names: Iterable[str]) -> None:
    """Imports what `--import` names, looked up as Python does, and then in the current folder. Raises
    ConfigError where that cannot be."""
    from pipeline.config.modules import import_named

    for name in names:
        import_named(name, [os.getcwd()], "--import")


def add_device_arguments(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="default: the run's; of a published model the device's best",
    )


def add_tasks_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        dest="tasks",
        type=names,
        metavar="NAME,NAME",
        help="one or several of the run's tasks (default: all)",
    )


def add_split_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        default="val",
        metavar="NAME",
        help="val (default), train, test, or another split that the shards' manifest names",
    )


def add_policy_argument(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--policy",
        metavar="NAME",
        help="another merge policy than the run's, without the run's reduction; NAME_untrained draws its "
        "embedding anew",
    )


def add_reduction_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reduction", metavar="R", help=f"{FORMS} instead of the run's")


def add_measured_reduction_argument(parser: argparse.ArgumentParser) -> None:
    """The same, or what pays on this device, as `launch.saved.reductions.asked_reduction` reads it."""
    parser.add_argument(
        "--reduction",
        metavar="R",
        help=f"{FORMS} instead of the run's; or auto:R@IMAGES, of R those merges that pay on this device for "
        "so many images at once (default 16; auto alone is the run's R); or kept, what the thresholds of "
        "a run of as_vit keep",
    )


def add_reductions_argument(parser: "argparse._ActionsContainer", default: str) -> None:
    """One or several as `reductions`, texts that `launch.saved.reductions.parse_reduction` reads."""
    parser.add_argument(
        "--reduction",
        dest="reductions",
        type=reductions,
        metavar="R,R",
        help=f"one or several: {FORMS}; a comma in brackets does not part them ({default})",
    )
