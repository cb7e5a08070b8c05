"""The stages of the CIFAR-10 benchmarks: runs of this project's own commands, kept in a folder, and their scores."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measure import ROOT

from launch.points import Point

SCRIPTS = Path(sys.executable).parent


def arguments(description: str | None, record: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="training shards: folder, brace pattern or URL")
    parser.add_argument("--val", required=True, help="shards to report on")
    parser.add_argument("--work", type=Path, default=Path("runs/cifar10_record"), help="folder of the runs; finished ones are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--record", type=Path, default=ROOT / "benchmarks/records" / record)
    return parser


def data_options(args: argparse.Namespace) -> list[str]:
    return [f"tasks.cifar10.data.train={args.train}", f"tasks.cifar10.data.val={args.val}"]


def train_backbone(folder: Path, data: list[str]) -> Path:
    """The unmerged ViT, in two DeepSpeed processes."""
    launcher = [str(SCRIPTS / "deepspeed"), "--num_accelerators", "2", "launch/train.py"]
    return _train(launcher, "configs/cifar10_vit.py", folder, [*data, "engine.type=deepspeed", "tasks.cifar10.data.batch_size=32"])


def train_embeddings(folders: Sequence[Path], backbone: Path, options: Sequence[list[str]]) -> list[Path]:
    """Modular runs of one process each, two at a time; options: what each changes in configs/cifar10_vit_dtem.py."""

    def train_one(folder: Path, changed: list[str]) -> Path:
        return _train([str(SCRIPTS / "dtem"), "train"], "configs/cifar10_vit_dtem.py", folder, [f"backbone.weights={backbone}", *changed])

    with ThreadPoolExecutor(2) as two_cores:
        return list(two_cores.map(train_one, folders, options))


def _train(command: list[str], config: str, folder: Path, options: list[str]) -> Path:
    """The folder of the finished run; a run that was finished before only confirms that."""
    folder = folder.resolve()
    subprocess.run([*command, "--config", config, "--cfg-options", f"output={folder}", *options], cwd=ROOT, check=True)
    return folder


def percent(point: Point, metric: str) -> list[float]:
    """One score per seed."""
    return [round(100 * score, 2) for score in point.scores[metric]]
