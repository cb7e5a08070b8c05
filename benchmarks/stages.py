"""The stages of a comparison of merge policies: runs of this project's own commands, kept in a folder, and
their scores."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from record import ROOT, write_record

from launch.measure.planning import Aims
from launch.measure.points import Point, Sweep, Target
from launch.measure.sweep import sweep
from launch.report.sweep_files import print_sweep, write_sweep
from launch.saved.run import read_run
from pipeline.config.load import load_config, to_plain

SCRIPTS = Path(sys.executable).parent
POLICIES = ("random", "tome", "dtem_untrained", "dtem")


def arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser of the options that all comparisons take. name: that of the record, and of the folder of its
    runs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True, help="training shards: folder, brace pattern or URL")
    parser.add_argument("--val", required=True, help="shards to report on")
    parser.add_argument(
        "--work", type=Path, default=Path("runs") / name, help="folder of the runs; finished ones are kept"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, help="of every run, for a trial of the script; a record has its configs'"
    )
    parser.add_argument("--record", type=Path, default=ROOT / f"benchmarks/records/{name}.json")
    return parser


def add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--start",
        default="None",
        help="weights of the ViT to start from: a file or run of configs/cifar10_vit.py's model",
    )


def add_within(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--within", type=float, default=0.5, help="share of the blocks, from the first, that merge"
    )


def data_options(args: argparse.Namespace, *tasks: str) -> list[str]:
    return [
        f"tasks.{task}.data.{split}={getattr(args, split)}" for task in tasks for split in ("train", "val")
    ]


def trial(args: argparse.Namespace) -> list[str]:
    """Options of a short run, if --steps is given; fp32, as many CPUs are slow at bf16."""
    if args.steps is None:
        return []
    steps = [f"train.steps={args.steps}", "train.epochs=None", "optim.warmup_steps=1"]
    return [*steps, "engine.precision=fp32"]


def shown(args: argparse.Namespace, targets: Sequence[Target]) -> Sequence[Target]:
    """The points of a sweep; in a trial only the first."""
    return targets if args.steps is None else targets[:1]


def train_on_two_cores(config: str, folder: Path, options: list[str]) -> Path:
    """One run in two DeepSpeed processes."""
    launcher = [str(SCRIPTS / "deepspeed"), "--num_accelerators", "2", "launch/train.py"]
    return _train(launcher, config, folder, [*options, "engine.type=deepspeed"])


def train_side_by_side(
    config: str | Sequence[str], folders: Sequence[Path], options: Sequence[list[str]]
) -> list[Path]:
    """Trains runs of one process each, two at a time. config: one for all, or one for each run. options: the
    changes of each run."""
    configs = [config] * len(folders) if isinstance(config, str) else config

    def train_one(own: str, folder: Path, changed: list[str]) -> Path:
        return _train([str(SCRIPTS / "dtem"), "train"], own, folder, changed)

    with ThreadPoolExecutor(2) as two_cores:
        return list(two_cores.map(train_one, configs, folders, options))


def record_arms(args: argparse.Namespace, claim: str, config: str, arms: Mapping[str, list[str]]) -> None:
    """Trains CIFAR-10 by the config once for each arm and seed, and records top-1 and top-5. arms: name ->
    what it changes."""
    common = [*data_options(args, "cifar10"), *trial(args)]
    jobs = {(arm, seed): args.work / f"{arm}_seed{seed}" for seed in args.seeds for arm in arms}
    options = [[*common, f"seed={seed}", *arms[arm]] for arm, seed in jobs]
    train_side_by_side(config, list(jobs.values()), options)
    results = [
        {
            "name": metric,
            "scores": {
                arm: [round(100 * scores_of(jobs[arm, seed], "cifar10")[metric], 2) for seed in args.seeds]
                for arm in arms
            },
        }
        for metric in ("top1", "top5")
    ]
    write_record(args.record, claim, results, seeds=args.seeds, runs=list(jobs.values()))


def modular_stage(args: argparse.Namespace, config: str, data: list[str], backbone: Path | str) -> list[Path]:
    """Trains the embeddings of a trained model, once for each seed, with everything else frozen."""
    folders = [args.work / f"dtem_seed{seed}" for seed in args.seeds]
    common = [*data, *trial(args), f"backbone.weights={backbone}"]
    return train_side_by_side(config, folders, [[*common, f"seed={seed}"] for seed in args.seeds])


def alone(config: str, task: str, folder: Path, options: Sequence[str]) -> str:
    """Writes a config file to the folder, with one task of a run with several; everything else is the
    same."""
    plain = to_plain(load_config(ROOT / config, options))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}.json"
    path.write_text(json.dumps(plain | {"tasks": {task: plain["tasks"][task]}}))
    return str(path.resolve())


def _train(command: list[str], config: str, folder: Path, options: list[str]) -> Path:
    """The folder of the finished run; a run that was finished before only confirms that."""
    folder = folder.resolve()
    subprocess.run(
        [*command, "--config", config, "--cfg-options", f"output={folder}", *options], cwd=ROOT, check=True
    )
    return folder


def record_sweep(
    args: argparse.Namespace,
    claim: str,
    runs: Sequence[Path],
    data: list[str],
    targets: Sequence[Target],
    name: str,
    *,
    merged: bool = False,
    within: float = 1.0,
    metrics: Sequence[str] = (),
    policies: Sequence[str] = POLICIES,
) -> None:
    """Sweeps policies over the runs (seeds of one setup) and writes table, plot and record.

    name: of a point, with {} for its target. merged, within: see `launch.measure.planning.Aims`. metrics:
    what is recorded, one result for each task, point and metric; by default the one that a task ranks by. All
    are times 100.
    """
    targets, rounds = shown(args, targets), 5 if args.steps is None else 1
    results = sweep(
        [read_run(run, "last", data) for run in runs],
        policies,
        Aims(targets, merged=merged, within=within),
        rounds=rounds,
    )
    print_sweep(results)
    print("wrote", *write_sweep(results, args.work / "sweep"))
    several = len(results) > 1
    points = [
        point_row(result, target, f"{result.task}, {name}" if several else name, metric)
        for result in results
        for metric in metrics or [result.metric]
        for target in targets
    ]
    write_record(args.record, claim, points, seeds=args.seeds, runs=runs)


def point_row(result: Sweep, target: Target, name: str, metric: str) -> dict[str, Any]:
    """The scores of every policy at one point; what draws nothing has one for all seeds.

    reduction and macs_ratio are DTEM's, which pays for its embedding, or else those of the first policy.
    Every policy's own are in `policies`.
    """
    points = {point.policy: point for point in result.points if point.target == target}
    own = {
        policy: {"reduction": list(point.schedule), "macs_ratio": round(point.macs / result.whole.macs, 4)}
        for policy, point in points.items()
    }
    scores = {"none": percent(result.whole, metric)} | {
        policy: percent(point, metric) for policy, point in points.items()
    }
    return {
        "name": f"{metric}, {name.format(f'{target:.0%}')}",
        **own.get("dtem", next(iter(own.values()))),
        "scores": scores,
        "policies": own,
    }


def scores_of(run: Path, task: str) -> dict[str, float]:
    """The validation scores of a task at the end of a finished run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    prefix = f"val/{task}/"
    *_, last = (line for line in lines if any(name.startswith(prefix) for name in line))
    return {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}


def percent(point: Point, metric: str) -> list[float | None]:
    """One score per seed; None is n/a."""
    return [None if score is None else round(100 * score, 2) for score in point.scores[metric]]
