"""Runs the scripts of this folder one after the other: `make bench`.

As it is, each takes a short setting that shows that it runs, and its record goes to a new folder in
runs/bench. With --record it takes hours, and benchmarks/records is written anew. What a script needs and this
machine lacks is named, with the command for later.

    python benchmarks/run_all.py
    python benchmarks/run_all.py --record --only inference_cpu training_step_cpu --peer dtem=DTEM/deit.py
    benchmarks/gpu.sh                    # what is measured on a GPU, with torch, timm, triton and safetensors
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from peer_paths import PEERS, add_peers

ROOT = Path(__file__).resolve().parent.parent
WORK = "WORK"
"""In arguments: the folder of the runs that scripts train, and from which later scripts start."""
TRIAL = "--seeds 0 --steps 4"


@dataclass(frozen=True)
class Row:
    """One record. arguments: of the record; short: follow them in a short run; peers: those that the script
    runs beside ours; needs: see `lacking`; into: record that the script adds to, where it is not one of its
    own; limit: seconds on a GPU, after which it is ended."""

    name: str
    script: str
    arguments: str = ""
    short: str = ""
    needs: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    into: str = ""
    limit: float | None = None

    def command(self, work: Path, record: Path, *, short: bool, peers: dict[str, str]) -> list[str]:
        words = shlex.split(f"{self.arguments} {self.short if short else ''}".replace(WORK, str(work)))
        given = [word for peer in self.peers if peer in peers for word in ("--peer", f"{peer}={peers[peer]}")]
        return ["python", f"benchmarks/{self.script}", *words, *given, "--record", str(record)]


def _shards(name: str, train: int) -> str:
    return f"--train 'data/{name}/train-{{00000..{train - 1:05}}}.tar' --val data/{name}/val-00000.tar"


CIFAR, SCENES, CAMVID = _shards("cifar10", 9), _shards("cifar_scenes", 6), _shards("camvid", 4)
DIGITS = "--train data/digits --val data/digits"
DIGITS_DTEM = (
    f"{DIGITS} --start {WORK}/digits_multitask/together_seed0 --work {WORK}/digits_multitask_dtem_vs_tome"
)
CAMVID_DTEM = f"{CAMVID} --start {WORK}/cifar10_dtem_vs_tome/backbone --work {WORK}/camvid_dtem_vs_tome"
SCENES_DTEM = (
    f"{SCENES} --start {WORK}/cifar10_dtem_vs_tome/backbone --work {WORK}/scenes_captioning_dtem_vs_tome"
)
ALL_PEERS = tuple(PEERS)
TINY = "--device cpu --threads 1 --batches 1 --repeats 1"
TINY_MODEL = f"{TINY} --model deit_tiny_patch16_224"


def _on_gpu(
    name: str, script: str, arguments: str, short: str, limit: float, peers: tuple[str, ...] = ()
) -> Row:
    """short: the row as a trial on a CPU."""
    return Row(
        f"gpu_{name}", f"{script}.py", f"--device cuda {arguments}", short, ("cuda",), peers, "gpu", limit
    )


BF16 = "--precision bf16"
GPU = (
    _on_gpu("checks", "gpu_checks", "", TINY_MODEL, 60),
    _on_gpu("inference", "inference", f"{BF16} --batches 1,64,128,256 --budget 6", TINY_MODEL, 60, ALL_PEERS),
    _on_gpu(
        "inference_graphs",
        "inference",
        f"{BF16} --graphs --batches 1,4,64 --policies dtem --budget 4",
        TINY_MODEL,
        35,
    ),
    _on_gpu(
        "inference_compiled",
        "inference",
        f"{BF16} --compile on --batches 64 --policies dtem --budget 4",
        f"{TINY_MODEL} --compile none",
        80,
    ),
    _on_gpu(
        "inference_large",
        "inference",
        f"{BF16} --model vit_large_patch16_224 --r 8 --batches 1,64,128 --policies dtem --budget 6",
        TINY_MODEL,
        45,
        ALL_PEERS,
    ),
    _on_gpu(
        "inference_any_r",
        "inference",
        f"{BF16} --batches 1,256 --r 0,1,2,4,8,13,16 --policies dtem --budget 2",
        TINY_MODEL,
        40,
    ),
    _on_gpu("training_step", "training_step", f"{BF16} --batches 128 --budget 6", TINY_MODEL, 60, ("dtem",)),
    _on_gpu("soft_assignment", "soft_assignment", "--batches 128 --budget 4", TINY, 25, ("dtem",)),
    _on_gpu(
        "unmerge",
        "unmerge",
        f"{BF16} --batches 1,16,64 --within 0.5 --budget 3",
        f"{TINY_MODEL} --size 96 --within 0.5",
        30,
    ),
    _on_gpu(
        "segmentation",
        "segmentation",
        f"{BF16} --batches 1,16,64 --within 0.5 --budget 4",
        f"{TINY_MODEL} --size 96 --within 0.5",
        30,
    ),
    _on_gpu(
        "engine_overhead",
        "engine_overhead",
        f"{BF16} --batches 128 --repeats 5 --modes backbone modular",
        f"{TINY} --models 'digits ViT' --modes modular",
        45,
    ),
)
"""What `benchmarks/gpu.sh` runs; the limits are less than 9 minutes together."""
TABLE = (
    Row(
        "scale",
        "scale_sim.py",
        short="--shards 1281 --nodes 1 8 --once 32 --steps 128 --gib 0.1",
    ),
    Row("inference_cpu", "inference.py", short="--repeats 2 --batches 1,4", peers=ALL_PEERS),
    Row(
        "inference_any_r_cpu",
        "inference.py",
        "--batches 1,4 --r 0,1,2,4,8,13,16 --policies dtem",
        "--repeats 2 --batches 1 --r 0,16",
    ),
    Row(
        "inference_bf16_cpu",
        "inference.py",
        "--precision bf16",
        "--repeats 2 --batches 1,4",
        peers=ALL_PEERS,
    ),
    Row(
        "inference_compiled_cpu",
        "inference.py",
        "--compile on --batches 1,4,16 --policies dtem",
        "--compile none --repeats 2 --batches 1",
    ),
    Row(
        "training_step_cpu",
        "training_step.py",
        short="--repeats 2 --batches 4 --what default,merge_cost",
        peers=("dtem",),
    ),
    Row("soft_assignment_cpu", "soft_assignment.py", short="--repeats 3 --batches 8", peers=("dtem",)),
    Row("unmerge_cpu", "unmerge.py", short="--repeats 2 --batches 1 --within 0.5"),
    Row(
        "engine_overhead_cpu",
        "engine_overhead.py",
        "--repeats 5",
        "--repeats 3 --models 'digits ViT'",
    ),
    Row("against_commit", "against_commit.py", "38425ea", "--repeats 1"),
    Row("manifest_scale", "manifest_scale.py", short="--shards 10 1000 --repeats 1"),
    Row("loader_cpu", "loader_cpu.py", short="--pictures 64 --batch 16 --batches 2 --repeats 1"),
    Row("streaming", "streaming.py", short="--pictures 128 --batch 16 --batches 3 --repeats 1"),
    Row("segmentation_cpu", "segmentation.py", short="--repeats 2 --batches 1 --within 0.5"),
    Row(
        "beam_search_cpu",
        "generation.py",
        "--threads 1",
        "--repeats 1 --length 8 --routes direct",
    ),
    Row(
        "multitask_step_cpu",
        "multitask_step.py",
        "--data data/digits --repeats 60",
        "--repeats 5",
        ("digits",),
    ),
    Row(
        "digits_multitask",
        "digits_multitask.py",
        f"{DIGITS} --work {WORK}/digits_multitask",
        TRIAL,
        ("digits",),
    ),
    Row("digits_multitask_dtem_vs_tome", "digits_multitask_dtem_vs_tome.py", DIGITS_DTEM, TRIAL, ("digits",)),
    Row(
        "digits_multitask_dtem_vs_tome_even",
        "digits_multitask_dtem_vs_tome.py",
        f"{DIGITS_DTEM} --within 1",
        TRIAL,
        ("digits",),
    ),
    Row(
        "cifar10_dtem_vs_tome",
        "cifar10_dtem_vs_tome.py",
        f"{CIFAR} --work {WORK}/cifar10_dtem_vs_tome",
        TRIAL,
        ("cifar10",),
    ),
    Row(
        "cifar10_recipes",
        "cifar10_recipes.py",
        f"{CIFAR} --work {WORK}/cifar10_dtem_vs_tome --seeds 0",
        TRIAL,
        ("cifar10",),
    ),
    Row(
        "rotary_positions",
        "rotary_positions.py",
        f"{CIFAR} --work {WORK}/rotary_positions",
        TRIAL,
        ("cifar10",),
    ),
    Row("camvid_dtem_vs_tome", "camvid_dtem_vs_tome.py", CAMVID_DTEM, TRIAL, ("camvid", "cifar10")),
    Row(
        "camvid_dtem_vs_tome_even",
        "camvid_dtem_vs_tome.py",
        f"{CAMVID_DTEM} --within 1",
        TRIAL,
        ("camvid", "cifar10"),
    ),
    Row(
        "camvid_unmerge",
        "camvid_unmerge.py",
        f"{CAMVID} --work {WORK}/camvid_dtem_vs_tome",
        TRIAL,
        ("camvid", "cifar10"),
    ),
    Row(
        "scenes_captioning_dtem_vs_tome",
        "scenes_captioning_dtem_vs_tome.py",
        SCENES_DTEM,
        TRIAL,
        ("cifar_scenes", "cifar10"),
    ),
    Row(
        "vit_small_saliency_dtem_vs_tome",
        "vit_small_saliency_dtem_vs_tome.py",
        f"--weights data/vit_small_saliency/model.safetensors {CAMVID} "
        f"--work {WORK}/vit_small_saliency_dtem_vs_tome",
        TRIAL,
        ("camvid", "vit_small_saliency"),
    ),
    Row("crashes", "checkpoint_crashes.py", "--kills 300", "--kills 6", into="reliability"),
    Row(
        "soak",
        "soak.py",
        "--kills 100 --signals 200 --stops 50",
        "--kills 2 --signals 2 --stops 1",
        into="reliability",
    ),
    Row(
        "cache_soak",
        "cache_soak.py",
        short="--processes 4 --reads 400 --shards 40 --kills 5",
        into="reliability",
    ),
    *GPU,
)
MADE = {"digits": ["shards", "make", "digit_scenes", "data/digits", "--train", "12000"]}
"""Sets that `dtem` makes where they are not there yet."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--record", action="store_true", help="full settings; benchmarks/records is written anew"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[row.name for row in TABLE],
        help="records to make; default: all",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="what is measured on a GPU, into one record gpu-DATE.json in $OUT, else in benchmarks/records",
    )
    parser.add_argument("--trial", action="store_true", help="with --gpu: tiny settings, on a CPU")
    add_peers(parser)
    args = parser.parse_args()
    if args.gpu:
        return run_gpu(args)
    work = Path("runs") if args.record else Path("runs/bench") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    records = Path("benchmarks/records") if args.record else work / "records"
    rows = [row for row in TABLE if row.name in (args.only or [row.name])]
    return run_all(rows, work, records, short=not args.record, peers=args.peer)


def run_gpu(args: argparse.Namespace) -> int:
    """The rows of a GPU."""
    rows = [row for row in GPU if row.name in (args.only or [row.name])]
    if args.trial:
        rows = [replace(row, needs=()) for row in rows]
    records = Path(os.environ.get("OUT", "benchmarks/records"))
    return run_all(rows, Path("runs/bench"), records, short=args.trial, peers=args.peer)


def run_all(rows: list[Row], work: Path, records: Path, *, short: bool, peers: dict[str, str]) -> int:
    """Tries every row and says at the end what became of each; 1 where one failed."""
    lines, failed = [], False
    for place, row in enumerate(rows, 1):
        record = records / record_name(row)
        if reason := lacking(row, peers):
            kept = Path("benchmarks/records") / record.name
            places = {peer: "PATH" for peer in row.needs if peer in PEERS} | peers
            later = row.command(Path("runs"), kept, short=False, peers=places)
            lines.append(f"  skipped  {row.name}: {reason}; then: {shlex.join(later)}")
            print(f"[{place}/{len(rows)}]{lines[-1]}", flush=True)
            continue
        command = row.command(work, record, short=short, peers=peers)
        print(f"[{place}/{len(rows)}]  {shlex.join(command)}", flush=True)
        started = time.monotonic()
        done = all(
            run(step, on_gpu="cuda" in row.needs, limit=None if short else row.limit)
            for step in [*preparation(row), [sys.executable, *command[1:]]]
        )
        failed |= not done
        minutes = (time.monotonic() - started) / 60
        lines.append(
            f"  {'done   ' if done else 'FAILED '}  {row.name}: {minutes:.1f} "
            f"min{f', {record}' if done else ''}"
        )
    print("\n".join(["", "bench:", *lines]))
    return int(failed)


def lacking(row: Row, peers: dict[str, str]) -> str:
    """What of the row's needs this machine does not have, in words; empty where all is there or can be
    made."""
    reasons = []
    for need in row.needs:
        if need == "cuda":
            import torch  # takes seconds: only where it is asked for

            reasons += [] if torch.cuda.is_available() else ["there is no CUDA device"]
        elif need in PEERS:
            reasons += [] if need in peers else [f"{PEERS[need]} is not here (--peer {need}=PATH)"]
        elif need not in MADE and not any((ROOT / "data" / need).glob("*.[ts]a*")):
            reasons.append(f"data/{need} has no shards or weights (benchmarks/README.md says which)")
    return ", and ".join(reasons)


def preparation(row: Row) -> list[list[str]]:
    """Commands that make what the row needs."""
    missing = [
        need for need in row.needs if need in MADE and not (ROOT / "data" / need / "manifest.json").exists()
    ]
    return [[str(Path(sys.executable).parent / "dtem"), *MADE[need]] for need in missing]


def record_name(row: Row) -> str:
    """The file of the row's record. That of a GPU has its day, as the machine is another each time."""
    return f"{row.into or row.name}{f'-{datetime.now():%Y-%m-%d}' if row.into == 'gpu' else ''}.json"


def run(command: list[str], *, on_gpu: bool, limit: float | None = None) -> bool:
    """Whether it ended well, within the limit in seconds. What is measured on the CPU sees no GPU, and one
    thread per process unless the script says otherwise."""
    hidden = {} if on_gpu else {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    env = {"OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "99", **os.environ, **hidden}
    try:
        return subprocess.run(command, cwd=ROOT, env=env, check=False, timeout=limit).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"ended after {limit:.0f} s", flush=True)
        return False


if __name__ == "__main__":
    sys.exit(main())
