"""The `dtem` command: finds the subcommand, and turns the user's mistakes into one message and exit code 2.

Each subcommand is a module with `add_parser(subparsers)` and `run(args) -> int`: `launch/train.py`, the
others in `launch/commands`. They import torch inside `run`, so that `--help` answers at once.
"""

import argparse
import importlib
import os
import select
import sys
from collections.abc import Sequence
from types import ModuleType

from launch.commands.arguments import add_verbose_argument, import_modules
from launch.commands.logs import start_logs
from launch.commands.mistakes import told
from launch.commands.seeds import run_seeds
from launch.commands.switches import check_switches
from pipeline.processes import soon_gone
from pipeline.redact import keep_from_logs
from pipeline.version import description

COMMANDS = (
    "train",
    "teach",
    "launch",
    "predict",
    "evaluate",
    "sweep",
    "board",
    "bench",
    "visualise",
    "report",
    "export",
    "convert",
    "shards",
    "config",
    "list",
    "doctor",
    "completion",
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dtem", description="Vision Transformers made cheap by learned token merging."
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version, and the commit of a checkout"
    )
    add_verbose_argument(parser)
    parser.set_defaults(verbose=False)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        _module(command).add_parser(subparsers)
    for leaf in leaves(parser):
        add_verbose_argument(leaf)
    return parser


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers that take no further command, those of `dtem doctor`, `dtem shards verify` and so on."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found = [leaf for action in nested for child in action.choices.values() for leaf in leaves(child)]
    return found or [parser]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a command line: 0 done, 1 done and the answer is no, 2 the user's mistake, 3 hung, 4
    storage or other processes did not answer, 130 interrupted, 141 nobody reads what it prints. argv: None is
    the command line of this process, which is gone soon after."""
    return _run(argv) if argv is not None else soon_gone(lambda: _run(None))


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    keep_from_logs()
    start_logs(verbose=args.verbose)
    try:
        check_switches()
        import_modules(getattr(args, "modules", ()))
        if getattr(args, "seeds", None):
            return run_seeds(args, sys.argv[1:] if argv is None else argv)
        code = _module(args.command).run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141
    except KeyboardInterrupt:
        print(f"dtem {args.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as err:
        code = told(err, f"dtem {args.command}", verbose=args.verbose)
        if code is None:
            raise
        return code


def _nobody_reads() -> bool:
    """Whether the reader of the standard output has gone, as `head` does; what is left goes nowhere then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


class _Version(argparse.Action):
    """Asks git only where the version is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"dtem {description()}")
        parser.exit()


def _module(command: str) -> ModuleType:
    return importlib.import_module("launch.train" if command == "train" else f"launch.commands.{command}")


if __name__ == "__main__":
    sys.exit(main())
