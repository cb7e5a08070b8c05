"""`dtem completion`: prints what makes a shell complete `dtem`."""

import argparse

from launch.commands.arguments import HelpFormatter

SHELLS = ("bash", "zsh", "tcsh")
EXAMPLES = """examples:
  dtem completion bash --out ~/.local/share/bash-completion/completions/dtem
  dtem completion zsh --out ~/.zfunc/_dtem      # with `fpath+=~/.zfunc` before compinit in ~/.zshrc
  dtem completion tcsh --out ~/.dtem.tcsh       # and `source ~/.dtem.tcsh` in ~/.tcshrc

It completes commands, options, files and runs, policies, the project's configs, and the settings of --set.
Write it anew after an update.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print the script with which bash, zsh or tcsh completes dtem",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.add_argument("--out", metavar="FILE", help="write the script there (default: print it)")


def run(args: argparse.Namespace) -> int:
    """0 when the script is printed. Raises ConfigError."""
    from pathlib import Path

    from launch.completion.script import script
    from pipeline.files import write_text

    text = script(args.shell)
    if args.out is None:
        print(text)
        return 0
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(args.out), text)
    return 0
