"""Records that say how they were made (docs/design.md, section 10)."""

import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath
from typing import Any

import timm
import torch

from pipeline.files import write_text
from pipeline.redact import without_secrets

ROOT = Path(__file__).resolve().parent.parent
SHARED_FOLDERS = ("data", "runs")
"""Where a checkout keeps what git ignores: the part of an outer path that a reader has too."""
OF_A_DAY = re.compile(r"gpu-\d{4}-\d\d-\d\d\.json")
_ABSOLUTE = re.compile(r"(^|=)(/.*)")


def write_record(
    path: str | Path,
    claim: str,
    results: Iterable[dict[str, Any]],
    *,
    seeds: Sequence[int] = (0,),
    runs: Sequence[Path] = (),
) -> None:
    """Writes the record anew with each of its results, and prints it, so that what was measured before a
    script is cut off is kept, marked `unfinished`. runs: folders of the runs that were scored; the record has
    digests of their configs. A record of a GPU's day, `gpu-2026-12-31.json`, holds those of several
    scripts."""
    put = _put_entry if OF_A_DAY.fullmatch(Path(path).name) else _put
    found: list[dict[str, Any]] = []
    for result in results:
        found.append(result)
        print(f"  {told(result)}", flush=True)
        put(Path(path), _made_now(claim, found, seeds, runs) | {"unfinished": True})
    put(Path(path), _made_now(claim, found, seeds, runs))
    print(f"wrote {path}", flush=True)


def add_entry(
    path: str | Path, claim: str, results: list[dict[str, Any]], *, seeds: Sequence[int] = (0,)
) -> None:
    """Writes one of the several records of a file, in the place of the one with the same claim, and prints
    its results.

    Such a file, `{"entries": [RECORD, ...]}`, holds what several scripts counted: {"name", "counts"}.
    """
    for result in results:
        print(f"  {told(result)}")
    _put_entry(Path(path), _made_now(claim, results, seeds, ()))
    print(f"wrote {path}", flush=True)


def _put(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")


def _put_entry(path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS locks no folders
            fcntl.flock(folder, fcntl.LOCK_EX)  # several scripts may end at once
        entries = json.loads(path.read_text())["entries"] if path.is_file() else []
        others = [other for other in entries if other["claim"] != entry["claim"]]
        _put(path, {"entries": sorted([*others, entry], key=lambda entry: entry["claim"])})
    finally:
        os.close(folder)


def _made_now(
    claim: str, results: list[dict[str, Any]], seeds: Sequence[int], runs: Sequence[Path]
) -> dict[str, Any]:
    return {
        "claim": claim,
        "command": shlex.join(["python", *(without_secrets(as_read(argument)) for argument in sys.argv)]),
        "commit": _COMMIT if commit_of(ROOT) in (_COMMIT, _COMMIT + CHANGES) else _COMMIT + CHANGES,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "digests": _digests(tuple(runs)),
        "seeds": list(seeds),
        "results": results,
    }


def told(result: dict[str, Any]) -> str:
    """A result in a line: the ratio with its spread, what it is measured against, and the peak memory."""
    if "ratio" not in result:
        figures = next(result[name] for name in ("scores", "counts") if name in result)
        return f"{result['name']}: {json.dumps(figures)}"
    ratio = result["ratio"]
    low, high = ratio["quartiles"]
    parts = [
        f"{result['name']}: {ratio['median']:.3g}x (quartiles {low:.3g} to {high:.3g}, n = {ratio['n']})"
    ]
    if "share_of_mac_ratio" in result:
        parts.append(f"{result['share_of_mac_ratio']:.0%} of {result['mac_ratio']:.2f}x fewer MACs")
    if "floor" in result:
        parts.append(f"{result['floor']['share']:.0%} of the device's rate")
    if "peak_mib" in result:
        peaks = (f"{side} {mib:.4g}" for side, mib in result["peak_mib"].items())
        parts.append(f"peak MiB: {', '.join(peaks)}")
    return "; ".join(parts)


def as_read(argument: str, root: Path = ROOT) -> str:
    """An argument of a command as a reader of the repository would give it: no path in it is this
    machine's own."""
    return _ABSOLUTE.sub(lambda found: found[1] + _as_read(PurePosixPath(found[2]), root), argument)


def _as_read(path: PurePosixPath, root: Path) -> str:
    if path.is_relative_to(root):
        return str(path.relative_to(root))
    shared = [place for place, part in enumerate(path.parts) if part in SHARED_FOLDERS]
    return str(PurePosixPath(*path.parts[shared[-1] :])) if shared else f"PATH/{path.name}"


CHANGES = "+changes"


def commit_of(root: Path) -> str:
    """The commit that is checked out, `+changes` where any file that git does not ignore differs, but for
    records; or why it is unknown. Where files alone were copied to a machine, it is that of $DTEM_COMMIT."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        except OSError:  # a bare machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git(
        "status", "--porcelain", "--untracked-files=all", "--", ":/", ":(top,exclude)benchmarks/records"
    )
    if commit is None or changed is None:
        return os.environ.get("DTEM_COMMIT") or "unknown: no git checkout"
    return commit + (CHANGES if changed else "")


_COMMIT = commit_of(ROOT)
"""As a script starts: what it measures is the code of then."""


@cache
def _digests(runs: tuple[Path, ...]) -> dict[str, Any]:
    """sha256 of the lock, of the names and versions of all that is installed, and of the resolved config of
    each run."""
    installed = sorted({f"{found.metadata['Name']}=={found.version}".lower() for found in distributions()})
    return {
        "lock": _sha256((ROOT / "requirements.lock").read_text()),
        "installed": _sha256("\n".join(installed)),
        "configs": {
            run.name: _sha256((run / "config.json").read_text().replace(f"{ROOT}/", "")) for run in runs
        },
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hardware() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
