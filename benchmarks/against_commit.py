"""Speed and memory of this tree on the CPU, beside another commit of the repository.

python benchmarks/against_commit.py 38425ea

Each tree's packages run in a process of its own, built by this tree's `contestants.py`. The two take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from contestants import inference, ours, training_step, unmerged
from measure import comparison, in_turns, peak_added
from record import write_record

ROOT = Path(__file__).resolve().parent.parent
JOBS: dict[str, dict[str, Any]] = {
    "inference, dtem": {"policy": "dtem"},
    "inference, tome": {"policy": "tome"},
    "inference, dtem, bf16": {"policy": "dtem", "dtype": "bfloat16"},
    "step, dtem": {"policy": "dtem", "step": True},
    "step, dtem reference": {"policy": "dtem", "step": True, "split": "reference"},
}


class Tree:
    """A process that runs jobs with the code of one tree."""

    def __init__(self, root: Path, options: argparse.Namespace):
        words = [sys.executable, __file__, "--worker", json.dumps(vars(options))]
        self._process = subprocess.Popen(
            words,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: str, job: str) -> float:
        """question: `seconds` of one call, or the most `bytes` that it allocates."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([question, job]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of a tree ended while it measured '{job}'")
        return float(answer)

    def close(self) -> None:
        self._process.communicate()


def build(job: str, options: dict[str, Any]) -> Callable[[], object]:
    """The job, to be called, with the packages of this process's tree."""
    torch.set_num_threads(options["threads"])
    settings = dict(JOBS[job])
    step, dtype = settings.pop("step", False), getattr(torch, settings.pop("dtype", "float32"))
    images = torch.randn(options["batch"], 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = ours(unmerged(options["model"]), options["model"], r=options["r"], **settings)
    return training_step(model, images, dtype, only="metric") if step else inference(model, images, dtype)


def work(options: dict[str, Any]) -> None:
    """Answers questions from standard input until it ends."""
    runs: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        question, job = json.loads(line)
        if job not in runs:
            runs = {job: build(job, options)}
        answer = peak_added(runs[job], torch.device("cpu")) if question == "bytes" else seconds(runs[job])
        print(answer, flush=True)


def seconds(run: Callable[[], object]) -> float:
    return in_turns({"run": run}, 1, warmup=0)["run"][0]


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder with the files of a commit, removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            raise SystemExit(f"commit '{commit}' cannot be read: {archive.stderr.decode().strip()}")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def compare(job: str, trees: dict[str, Tree], repeats: int) -> list[dict[str, Any]]:
    mebibytes = {name: [tree.ask("bytes", job) / 2**20] for name, tree in trees.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(repeats):
        for name, tree in trees.items():
            seconds[name].append(tree.ask("seconds", job))
    return [
        comparison(f"seconds, {job}", *seconds.values()),
        comparison(f"MiB allocated at the peak, {job}", *mebibytes.values()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="what this tree is measured beside")
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", nargs="+", metavar="JOB", choices=JOBS, default=list(JOBS))
    parser.add_argument("--record", default="benchmarks/records/against_commit.json")
    args = parser.parse_args()

    with checked_out(args.commit) as other, ExitStack() as stack:
        trees = {name: Tree(root, args) for name, root in (("this", ROOT), ("other", other))}
        for tree in trees.values():
            stack.callback(tree.close)
        results = [result for job in args.jobs for result in compare(job, trees, args.repeats)]
    claim = (
        f"{args.model}, batch {args.batch}, r={args.r}, {args.threads} threads: a call of this tree over one "
        f"of {args.commit}"
    )
    write_record(args.record, claim, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(json.loads(sys.argv[2]))
    else:
        main()
