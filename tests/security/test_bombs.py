"""Small inputs that unfold to gigabytes: refused, in a process that may take 1 GiB beside its imports."""

import json
import subprocess
import sys
from pathlib import Path

from bombs import BOMBS, READ

WORKER = Path(__file__).parents[1] / "helpers/bomb_worker.py"


def test_no_bomb_goes_off(tmp_path):
    done = subprocess.run([sys.executable, WORKER, tmp_path], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["name"] for result in results] == [*BOMBS, *READ]
    wrong = [result for result in results if result["answer"] != result["wanted"]]
    assert not wrong, wrong
    assert results[-1]["mib"] < 1024
