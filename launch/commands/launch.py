"""`dtem launch`: trains a run with many processes, on this machine, on the hosts of a hostfile, or on a
cluster."""

import argparse
import os
import sys
from pathlib import Path

from launch.cluster.hosts import LARGEST_PORT, MOST_SLOTS, check_name, check_number
from launch.commands.arguments import (
    HelpFormatter,
    add_hosts_arguments,
    add_import_argument,
    add_training_arguments,
    chosen_hosts,
)
from launch.commands.seeds import add_seeds_argument
from launch.commands.trials import add_trial_arguments, trial_words

BACKENDS = ("local", "deepspeed", "torchrun", "slurm", "mpi", "k8s")
STARTED_HERE = ("local", "deepspeed", "torchrun")
MOST_NODES = 100_000
EXAMPLE = r"""examples:
  dtem launch configs/debug_cpu.py --nproc 2 --set engine.type=deepspeed
  dtem launch configs/imagenet_deit_small_dtem_modular.py --backend deepspeed --hostfile hosts
  dtem launch configs/debug_cpu.py --backend slurm --nodes 4 --nproc 8 --dry-run

A hostfile has a line `node1 slots=8` for each host. docs/clusters.md shows what each backend starts.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "launch",
        help="train a run with many processes, on one machine or many",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="local",
        help="local (default): processes of this machine\n"
        "deepspeed: the hosts of a DeepSpeed hostfile, over ssh\n"
        "torchrun: the same, with torch's elastic agent on each\n"
        "slurm, mpi, k8s: what sbatch, mpirun, kubectl get",
    )
    add_training_arguments(parser)
    add_import_argument(parser)
    add_trial_arguments(parser)
    add_seeds_argument(parser)
    add_hosts_arguments(parser)
    _add_number(parser, "--nproc", MOST_SLOTS, "processes on each host (default: its slots or GPUs)")
    _add_number(parser, "--nodes", MOST_NODES, "hosts to ask slurm or k8s for, without a hostfile")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable for the ranks besides those of the allow-list; repeatable",
    )
    _add_number(
        parser,
        "--restarts",
        1000,
        "how often the run starts again after a crash; never after a user's mistake or a request to stop",
        default=0,
    )
    parser.add_argument("--master-addr", metavar="ADDRESS", help="of the first host, as the others reach it")
    _add_number(parser, "--master-port", LARGEST_PORT, "a port of the first host (default: a free one)")
    parser.add_argument("--image", metavar="IMAGE", help="container image (k8s)")
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a persistent volume claim and where it is mounted (k8s); repeatable",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be started, and start nothing"
    )


def _add_number(
    parser: argparse.ArgumentParser, flag: str, most: int, text: str, default: int | None = None
) -> None:
    def number(value: str) -> int:
        from pipeline.errors import ConfigError

        try:
            return 0 if default == 0 and value == "0" else check_number(flag, value, most)
        except ConfigError as err:
            raise argparse.ArgumentTypeError(str(err)) from err

    parser.add_argument(flag, type=number, default=default, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    """The run's exit status: 0 done or stopped as asked, 2 a user's mistake, else that of what failed first.
    Raises PipelineError."""
    from launch.cluster.backends.all import BACKENDS as REGISTRY

    job = build_job(args)
    backend = REGISTRY.build(args.backend)
    if args.dry_run:
        sys.stdout.write(backend.text(job))
        return 0
    return backend.run(job)


def build_job(args: argparse.Namespace):
    """The Job of a command line. Raises PipelineError, also for the mistakes of the config."""
    import tasks  # noqa: F401 - fills the registry
    from launch.cluster.environment import environment, variables
    from launch.cluster.hosts import Host, with_processes
    from launch.cluster.job import HERE, Job
    from pipeline.config.load import load_config

    output = load_config(args.config, args.cfg_options).output
    hosts = with_processes(chosen_hosts(args), args.nproc)
    _check(args, bool(hosts))
    given = variables if args.backend in STARTED_HERE and not hosts else environment
    processes = args.nproc or (0 if hosts else _processes(args))
    if args.backend in STARTED_HERE and not hosts:
        hosts = [Host(HERE, tuple(range(processes)))]
    return Job(
        train=_train(args),
        folder=os.getcwd(),
        output=output,
        hosts=tuple(hosts),
        nodes=args.nodes or 1,
        processes=processes,
        env=given(args.env, os.environ),
        restarts=args.restarts,
        python="python" if args.backend == "k8s" else sys.executable,
        master_addr=check_name(args.master_addr) if args.master_addr else None,
        master_port=args.master_port,
        image=args.image,
        claims=tuple(map(_claim, args.claim)),
    )


def _check(args: argparse.Namespace, hostfile: bool) -> None:
    from pipeline.errors import ConfigError

    if args.nodes and (hostfile or args.backend not in ("slurm", "k8s")):
        raise ConfigError("--nodes is for --backend slurm or k8s without a hostfile, which names the hosts")
    if args.backend in ("slurm", "k8s", "mpi") and not (hostfile or args.nproc):
        raise ConfigError(f"--backend {args.backend} needs --nproc N, the processes (GPUs) of a node")


def _processes(args: argparse.Namespace) -> int:
    """GPUs of this machine, or 1."""
    import torch

    from pipeline.engine import launched

    return torch.cuda.device_count() if launched.cuda() else 1


def _train(args: argparse.Namespace) -> tuple[str, ...]:
    words = ["--config", args.config]
    words += ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    words += [word for name in args.modules for word in ("--import", name)]
    faults = (word for fault in args.inject for word in ("--inject", fault))
    return (*words, *trial_words(args), *faults, "--resume", args.resume)


def _claim(text: str) -> tuple[str, str]:
    from pipeline.errors import ConfigError

    name, _, path = text.partition("=")
    if not (name and Path(path).is_absolute()):
        raise ConfigError(f"--claim {text}: give the claim's name and an absolute path, as in data=/data")
    return check_name(name), path
