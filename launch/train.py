"""`dtem train`, and the script that launchers start: `deepspeed launch/train.py --config configs/x.py`."""

import argparse
import os
import sys

EXAMPLE = r"""examples:
  dtem train configs/debug_cpu.py
  dtem train configs/debug_cpu.py --set optim.lr=1e-3 --set train.steps=20
  dtem train configs/debug_cpu.py --seeds 0,1,2
  deepspeed --num_accelerators 2 launch/train.py --config configs/debug_cpu.py \
      --cfg-options engine.type=deepspeed optim.lr=1e-3

configs/debug_cpu.py reads data/digits; make it with `dtem shards make digit_scenes data/digits`. The comment
at the top of each config says what the config needs. Without GPUs set DS_ACCELERATOR=cpu for DeepSpeed.
"""


def add_parser(subparsers) -> None:
    from launch.commands.arguments import HelpFormatter
    from launch.commands.seeds import add_seeds_argument

    parser = subparsers.add_parser(
        "train",
        help="train a run of a config file",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    _add_arguments(parser)
    add_seeds_argument(parser)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from launch.commands.arguments import add_import_argument, add_training_arguments
    from launch.commands.trials import add_trial_arguments

    add_training_arguments(parser)
    add_import_argument(parser)
    add_trial_arguments(parser)
    _add_dry_run_arguments(parser)
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS
    )  # launchers give it


def _add_dry_run_arguments(parser: argparse.ArgumentParser) -> None:
    from launch.commands.values import count

    dry = parser.add_argument_group(
        "dry run: say what would be trained, on any number of ranks, without a GPU"
    )
    dry.add_argument(
        "--dry-run",
        action="store_true",
        help="print batches, steps, memory and DeepSpeed's configuration; train nothing. Exit code 1 where "
        "the run would not start here, as of `dtem config check`",
    )
    dry.add_argument("--world-size", type=count, metavar="N", help="ranks of the run (default 1)")
    dry.add_argument("--nodes", type=count, metavar="N", help="machines, with --gpus-per-node")
    dry.add_argument("--gpus-per-node", type=count, metavar="M", help="ranks of a machine")
    dry.add_argument(
        "--fake-step",
        type=count,
        nargs="?",
        const=2,
        metavar="N",
        help="also make one step here on noise, with N samples in a micro-batch (2)",
    )


def _dry_run(args: argparse.Namespace) -> int:
    import tasks  # noqa: F401 - fills the registry
    from launch.commands.trials import trial
    from launch.configs.dry_run import dry_run, ranks_of
    from launch.configs.prepared import prepare
    from pipeline.config.load import load_config
    from pipeline.train.faults.injection import Injection

    Injection(args.inject)  # refuses what is no fault
    ranks = ranks_of(args.world_size, args.nodes, args.gpus_per_node)
    prepared = prepare(trial(load_config(args.config, args.cfg_options), args), ranks)
    for line in dry_run(prepared, args.fake_step):
        print(line)
    return 1 if prepared.refusals else 0


def run(args: argparse.Namespace) -> int:
    """0 when the run is done or was stopped as asked; 1 for a dry run of one that would not start.
    Raises PipelineError for the user's mistakes."""
    import logging

    import tasks  # noqa: F401 - fills the registry
    from launch.commands.trials import trial
    from pipeline.config.load import load_config
    from pipeline.errors import ConfigError
    from pipeline.train.faults.injection import Injection
    from pipeline.train.loop import train

    if args.dry_run:
        return _dry_run(args)
    if args.world_size or args.nodes or args.gpus_per_node or args.fake_step:
        raise ConfigError("--world-size, --nodes, --gpus-per-node and --fake-step go with --dry-run")
    rank = os.environ.get("RANK", "0")
    main = rank == "0"
    logging.basicConfig(
        level=logging.INFO if main else logging.ERROR,
        format="%(levelname)s " + ("" if main else f"rank {rank}: ") + "%(message)s",
    )
    for name in (
        () if args.verbose else ("quarantine", "stalls", "shards.patience")
    ):  # each rank reads samples of its own
        logging.getLogger(f"pipeline.data.{name}").setLevel(logging.WARNING)
    faults = Injection(args.inject)
    config = trial(load_config(args.config, args.cfg_options), args)
    folder = train(config, args.resume, faults)
    if main:
        print(f"wrote {folder}: config.json, metrics.jsonl, checkpoints/")
    return 0


def main() -> int:
    """Runs as a script. Rank 0 alone prints a user's mistake, without a traceback."""
    try:
        from launch.commands.arguments import HelpFormatter, add_verbose_argument, import_modules
        from launch.commands.logs import start_logs
        from launch.commands.mistakes import told
        from launch.commands.switches import check_switches
        from pipeline.redact import keep_from_logs
    except ImportError as err:
        print(
            f"train.py: {err}; a launcher sees installed packages only: run `pip install -e .` in the "
            "project's folder",
            file=sys.stderr,
        )
        return 2
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, epilog=EXAMPLE, formatter_class=HelpFormatter
    )
    _add_arguments(parser)
    add_verbose_argument(parser)
    parser.set_defaults(verbose=False)
    args = parser.parse_args()
    keep_from_logs()
    start_logs(verbose=args.verbose)
    try:
        check_switches()
        import_modules(args.modules)
        return run(args)
    except Exception as err:
        hint = ". The same command continues from the last checkpoint"
        code = told(err, "train.py", verbose=args.verbose, when_lost=hint)
        if code is None:
            raise
        return code


def script() -> int:
    """`main` of a process of its own, which is gone soon after it."""
    try:
        from pipeline.processes import soon_gone, stop_with_launcher
    except ImportError:  # the package is not installed, which `main` tells
        return main()
    # before the imports, which take seconds, in which the launcher may end
    stop_with_launcher()
    return soon_gone(main)


if __name__ == "__main__":
    sys.exit(script())
