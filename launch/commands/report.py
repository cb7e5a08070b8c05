"""`dtem report`: one HTML page about one run or several: scores, curves, sweeps, pictures, configs and what
differs, and how to repeat it. It needs no network, and holds no script.
"""

import argparse

from launch.commands.arguments import HelpFormatter

EXAMPLE = """examples:
  dtem report runs/imagenet
  dtem report runs/a runs/b --out comparison.html
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="one HTML page about runs",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument(
        "--out", metavar="FILE", help="default: RUN/report.html; of several runs: report.html here"
    )


def run(args: argparse.Namespace) -> int:
    """0 when the page is written. Raises PipelineError."""
    from pathlib import Path

    from launch.run_report.page import report
    from launch.run_report.read import read_facts
    from pipeline.files import file_place, write_text

    runs = [read_facts(path) for path in args.run]
    here = Path("report.html") if len(runs) > 1 else runs[0].folder / "report.html"
    path = here if args.out is None else file_place(args.out)
    print(f"wrote {write_text(path, report(runs))}")
    return 0
