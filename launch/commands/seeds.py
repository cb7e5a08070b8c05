"""`--seeds 0,1,2` of `dtem train` and `dtem launch`: the same run with each of the seeds, one after another,
each in a process and a folder of its own:

    OUTPUT/seed_0/, OUTPUT/seed_1/, ...

A run that fails or is stopped ends the row; the same command goes on with it, and passes over those that are
done.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from launch.commands.values import numbers
from pipeline.processes import end_with_parent

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
"""SIGINT is sent by the terminal to all of its processes."""


def add_seeds_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        type=numbers,
        metavar="N,N",
        help="train the run once with each of these seeds, one after another, in OUTPUT/seed_N",
    )


def run_seeds(args: argparse.Namespace, words: Sequence[str]) -> int:
    """The first exit code that is not 0, else 0. words: the command line, from the command on. Raises
    PipelineError for the config's mistakes."""
    import tasks  # noqa: F401 - fills the registry
    from pipeline.config.load import load_config
    from pipeline.errors import ConfigError

    if len(set(args.seeds)) < len(args.seeds):
        raise ConfigError(f"--seeds {','.join(map(str, args.seeds))} names a seed twice")
    output, words = load_config(args.config, args.cfg_options).output, _without_seeds(words)
    folders = {seed: f"{output}/seed_{seed}" for seed in args.seeds}
    with _Row() as row:
        for seed, folder in folders.items():
            print(f"seed {seed}: {folder}", flush=True)
            if code := row.run([*words, "--set", f"seed={seed}", "--set", f"output={folder!r}"]):
                return code
            if row.asked:
                print(f"stopped as asked at seed {seed}; the same command goes on", flush=True)
                return 0
    return 0


def _without_seeds(words: Sequence[str]) -> list[str]:
    """The words without the option, also where it is shortened."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seeds")
    return parser.parse_known_args(words)[1]


class _Row:
    """Context manager that starts one process after another, and passes requests to stop on to it. Each
    is asked to stop where this process is killed."""

    def __init__(self) -> None:
        self.asked, self._id = False, os.getpid()
        self._child: subprocess.Popen[bytes] | None = None
        self._handlers = {}

    def __enter__(self) -> "_Row":
        numbers = (*PASSED_ON, signal.SIGINT)
        self._handlers = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(self, words: Sequence[str]) -> int:
        """The exit code of `dtem WORDS`; that of a shell where a signal ended it."""
        command = [sys.executable, "-m", "launch.cli", *words]
        self._child = subprocess.Popen(
            command, preexec_fn=lambda: end_with_parent(signal.SIGTERM, parent=self._id)
        )
        if self.asked:  # between two processes
            self._child.send_signal(signal.SIGTERM)
        code = self._child.wait()
        return 128 - code if code < 0 else code

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._child is not None and number in PASSED_ON:
            self._child.send_signal(number)
