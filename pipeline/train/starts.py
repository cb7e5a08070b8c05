"""RUN/starts.jsonl: a line for each start of the run: when, by which command, on what, with which code."""

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from pipeline.files import write_bytes
from pipeline.redact import without_secrets
from pipeline.train import checkpoint
from pipeline.train.run import Run

FILE = "starts.jsonl"
MOST = 1000
"""Lines that are kept, the newest ones."""


def note_start(run: Run) -> None:
    """Adds the line of this start, on rank 0. Secrets are left out."""
    if run.engine.rank > 0:
        return
    facts = checkpoint.run_facts(run.config, run.engine.world_size)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": run.progress.step,
        "command": without_secrets(shlex.join(sys.argv)),
        "commit": facts["commit"],
        "versions": facts["versions"],
        "about": list(map(without_secrets, run.about)),
    }
    path = Path(run.config.output) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = path.read_bytes().splitlines() if path.is_file() and not path.is_symlink() else []
    write_bytes(path, b"".join(own + b"\n" for own in [*earlier[1 - MOST :], json.dumps(line).encode()]))
