"""Programs of schedulers that a backend starts."""

import shutil
import subprocess
from collections.abc import Sequence

from pipeline.errors import ConfigError


def require(program: str, backend: str) -> None:
    """Raises ConfigError where a program is not on PATH."""
    if shutil.which(program) is None:
        raise ConfigError(
            f"--backend {backend} needs '{program}' on PATH; load it, or take the text of --dry-run along"
        )


def submit(argv: Sequence[str], text: str) -> int:
    """Runs a program with a text on its standard input; its exit status."""
    return subprocess.run(argv, input=text.encode()).returncode
