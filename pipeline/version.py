"""The version of the package, and the commit where it is a checkout."""

import subprocess
from pathlib import Path

VERSION = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent


def description(root: Path = ROOT) -> str:
    """Version and commit, for instance `0.1.0, commit 0123456789ab with changes`.

    The version alone where `root` is not the top of a checkout, as in site-packages.
    """
    if not (root / ".git").exists() or not (commit := _git(root, "rev-parse", "--short=12", "HEAD")):
        return VERSION
    changes = " with changes" if _git(root, "status", "--porcelain") else ""
    return f"{VERSION}, commit {commit}{changes}"


def _git(root: Path, *arguments: str) -> str:
    """What git prints; nothing where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
