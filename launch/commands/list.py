"""`dtem list`: the names that a config may give."""

import argparse

from launch.commands.arguments import HelpFormatter

KINDS = ("models", "policies", "tasks", "objectives", "heads", "configs")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "list",
        help="list models, policies, tasks, objectives, heads or configs",
        description=__doc__,
        epilog="examples:\n  dtem list policies\n  dtem list models dinov3\n  dtem list configs imagenet",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="only lines that contain it")


def run(args: argparse.Namespace) -> int:
    """0 when names are printed, 1 where none contains the text."""
    from launch.configs.names import rows_of

    return print_rows(rows_of(args.kind, args.text), args.text)


def print_rows(rows: list[tuple[str, str]], text: str) -> int:
    import sys

    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        print(f"{name:{width}}  {about}".rstrip())
    if not rows:
        print(f"none contains '{text}'", file=sys.stderr)
    return 0 if rows else 1
