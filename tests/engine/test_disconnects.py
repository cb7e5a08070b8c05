"""What connects the processes of a run ends before the interpreter does."""

import subprocess
import sys

from deepspeed_launch import ROOT, environment

SCRIPT = """
import atexit, glob, sys
sys.path.insert(0, "tests/helpers")

def threads():
    return [name for path in glob.glob("/proc/self/task/*/comm") if "gloo" in (name := open(path).read())]

atexit.register(lambda: print("at the end", len(threads())))  # called last, as it is registered first
import engine_worker

def run():
    parts = engine_worker.make("joint", 1)
    engine_worker.run("joint", *parts, 0, 1)

run()
print("before", len(threads()) > 0)
"""


def test_no_thread_of_gloo_outlives_the_groups_of_a_run():
    """It would abort the process where it gives a tensor back to an interpreter that has ended."""
    alone = {
        name: value
        for name, value in environment().items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=alone, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["before True", "at the end 0"]
