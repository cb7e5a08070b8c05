"""The `dtem` command: finds the subcommand, and turns the user's mistakes into one message and exit code 2.

Each subcommand is a module with `add_parser(subparsers)` and `run(args) -> int`: `launch/train.py`, the
others in `launch/commands`. They import torch inside `run`, so that `--help` answers at once.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from launch.commands.arguments import import_modules
from pipeline.processes import soon_gone
from pipeline.redact import keep_from_logs, without_secrets
from pipeline.version import description

COMMANDS = ("train", "teach", "launch", "evaluate", "sweep", "visualise", "export", "shards", "doctor")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dtem", description="Vision Transformers made cheap by learned token merging."
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version, and the commit of a checkout"
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        _module(command).add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a command line: 0 done, 1 done and the answer is no, 2 the user's mistake, 3 hung, 4
    storage or other processes did not answer, 130 interrupted. argv: None is the command line of this
    process, which is gone soon after."""
    return _run(argv) if argv is not None else soon_gone(lambda: _run(None))


def _run(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    keep_from_logs()
    try:
        import_modules(getattr(args, "modules", ()))
        return _module(args.command).run(args)
    except KeyboardInterrupt:
        print(f"dtem {args.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as err:
        from pipeline.engine.launched import lost_another  # imports torch, for which --help should not wait
        from pipeline.errors import exit_code, is_users

        if lost := lost_another(err):
            print(f"dtem {args.command}: {lost}", file=sys.stderr)
            return 1
        if not is_users(err):
            raise
        print(f"dtem {args.command}: {without_secrets(str(err))}", file=sys.stderr)
        return exit_code(err)


class _Version(argparse.Action):
    """Asks git only where the version is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"dtem {description()}")
        parser.exit()


def _module(command: str) -> ModuleType:
    return importlib.import_module("launch.train" if command == "train" else f"launch.commands.{command}")


if __name__ == "__main__":
    sys.exit(main())
