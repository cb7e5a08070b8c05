"""Python and the packages: what is installed, whether it fits and whether it can be imported."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from launch.checks.finding import Finding

DISTRIBUTION = "dtem-pipeline"


def check_python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    version, wanted = (
        ".".join(map(str, sys.version_info[:3])),
        metadata.metadata(DISTRIBUTION)["Requires-Python"],
    )
    fits = version in SpecifierSet(wanted)
    way_out = "" if fits else f"needs {wanted}: make clean install PYTHON=python3.11"
    yield Finding("python", "ok" if fits else "missing", f"{version} ({sys.executable})", way_out)


def check_packages() -> Iterator[Finding]:
    """Each requirement of setup.cfg against what is installed."""
    from packaging.requirements import Requirement

    for text in metadata.requires(DISTRIBUTION) or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Finding(need.name, "missing", f"needs {need.specifier or 'any version'}", "make install")
            continue
        fits = need.specifier.contains(version, prereleases=True)
        yield Finding(
            need.name,
            "ok" if fits else "missing",
            version,
            "" if fits else f"needs {need.specifier}: make install",
        )


def check_imports() -> Iterator[Finding]:
    """The fragile packages, each in a process of its own, so that a crash or a hang there is a finding
    here."""
    slim = "on a slim image: apt-get install libgl1 libglib2.0-0"
    for statement, hint in {
        "import deepspeed": "make install",
        "import mmseg.models": slim,
        "import open_clip": "make install",
    }.items():
        try:
            done = subprocess.run(
                [sys.executable, "-c", statement], capture_output=True, text=True, timeout=180
            )
        except subprocess.TimeoutExpired:
            yield Finding(
                statement, "missing", "no answer in 180 s", "look for a stale lock below, or a slow disk"
            )
            continue
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield (
            Finding(statement, "missing", last, hint)
            if done.returncode
            else Finding(statement, "ok", "works")
        )


def check_mm_families() -> Iterator[Finding]:
    for name in ("mmengine", "mmcv", "mmsegmentation"):
        rivals = [d for d in (name, f"{name}-lite", f"onedl-{name}") if _installed(d)]
        if len(rivals) > 1:
            yield Finding(
                name,
                "warn",
                f"{' and '.join(rivals)} overwrite each other's files",
                f"pip uninstall {' '.join(rivals)}, then make install",
            )


def check_tokenizer() -> Iterator[Finding]:
    """Captioning tokenises offline, with the vocabulary that open_clip ships."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    files = metadata.files("open_clip_torch") if _installed("open_clip_torch") else None
    found = any(file.name == name and Path(str(file.locate())).exists() for file in files or ())
    yield Finding(
        "open_clip tokenizer",
        "ok" if found else "missing",
        name,
        "" if found else "pip install --force-reinstall --no-deps open_clip_torch",
    )


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
