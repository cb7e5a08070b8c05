"""`dtem train`, and the script that launchers start: `deepspeed launch/train.py --config configs/x.py`."""

import argparse
import os
import sys

EXAMPLE = r"""examples:
  dtem train --config configs/debug_cpu.py
  deepspeed --num_accelerators 2 launch/train.py --config configs/debug_cpu.py \
      --cfg-options engine.type=deepspeed optim.lr=1e-3

configs/debug_cpu.py reads data/digits; make it with `dtem shards make digit_scenes data/digits`. The comment
at the top of each config says what the config needs. Without GPUs set DS_ACCELERATOR=cpu for DeepSpeed.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a run of a config file",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    _add_arguments(parser)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from launch.commands.arguments import add_import_argument

    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a config (.py), or the config.json of an earlier run"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="replace fields, for instance optim.lr=1e-3",
    )
    add_import_argument(parser)
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|PATH",
        help="auto: continue the run's last checkpoint, if any (default)\n"
        "none: start anew; refused where `output` holds checkpoints\n"
        "PATH: continue this run's folder or checkpoint;\n"
        "      later checkpoints in `output` are set aside",
    )
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS
    )  # launchers give it


def run(args: argparse.Namespace) -> int:
    """0 when the run is done or was stopped as asked. Raises PipelineError for the user's mistakes."""
    import logging

    import tasks  # noqa: F401 - fills the registry
    from pipeline.config.load import load_config
    from pipeline.train.loop import train

    rank = os.environ.get("RANK", "0")
    main = rank == "0"
    logging.basicConfig(
        level=logging.INFO if main else logging.ERROR,
        format="%(levelname)s " + ("" if main else f"rank {rank}: ") + "%(message)s",
    )
    for name in ("quarantine", "stalls", "shards.storage"):  # each rank reads samples of its own
        logging.getLogger(f"pipeline.data.{name}").setLevel(logging.WARNING)
    folder = train(load_config(args.config, args.cfg_options), args.resume)
    if main:
        print(f"wrote {folder}: config.json, metrics.jsonl, checkpoints/")
    return 0


def main() -> int:
    """Runs as a script. Rank 0 alone prints a user's mistake, without a traceback."""
    try:
        from launch.commands.arguments import import_modules
        from pipeline.engine.launched import lost_another, rank_0_goes_on
        from pipeline.errors import ConfigError, is_users, printable
    except ImportError as err:
        print(
            f"train.py: {err}; a launcher sees installed packages only: run `pip install -e .` in the "
            "project's folder",
            file=sys.stderr,
        )
        return 2
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawTextHelpFormatter
    )
    _add_arguments(parser)
    args = parser.parse_args()
    try:
        import_modules(args.modules)
        return run(args)
    except Exception as err:
        rank = printable(os.environ.get("RANK", "0"))
        if lost := lost_another(err):
            print(
                f"train.py, rank {rank}: {lost}. The same command continues from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            return 1
        if not is_users(err):
            raise
        if rank != "0" and isinstance(err, ConfigError):
            # or else it has the same to say, and the launcher would end it as soon as this one exits
            rank_0_goes_on()
        print(f"train.py{'' if rank == '0' else f', rank {rank}'}: {err}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
