"""Checks of Python and the packages: whether they are installed, fit the requirements, and can be
imported."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from launch.checks.finding import Finding
from pipeline.extras import DISTRIBUTION, EXTRAS, command

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet


def check_python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    fits = version in SpecifierSet(wanted)
    way_out = "" if fits else f"needs {wanted}; in a checkout: make clean install PYTHON=python3.11"
    yield Finding("python", "ok" if fits else "missing", f"{version} ({sys.executable})", way_out)


def check_packages() -> Iterator[Finding]:
    """The installed version of each requirement of setup.cfg. A missing extra is no mistake."""
    for package, wanted, name in _requirements():
        # neither `dev` nor `all`, which consists of the other extras
        if name is None or name in EXTRAS:
            yield found_package(package, wanted, name)


def needed_packages(name: str, needed_by: str) -> Iterator[Finding]:
    """The installed version of each requirement of an extra. needed_by: the setting that needs it."""
    for package, wanted, extra in _requirements():
        if extra == name:
            yield found_package(package, wanted, name, needed_by=needed_by)


def _requirements() -> "Iterator[tuple[str, SpecifierSet, str | None]]":
    """Yields (package, versions, the extra that it is of, or None) of setup.cfg."""
    from packaging.requirements import Requirement

    for text in metadata.requires(DISTRIBUTION) or ():
        need = Requirement(text)
        found = re.search(r"extra == .([a-z0-9-]+)", str(need.marker))
        yield need.name, need.specifier, found[1] if found else None


def found_package(
    package: str, wanted: "SpecifierSet", name: str | None, *, needed_by: str | None = None
) -> Finding:
    """Finding on a package of the extra `name`, or of the core (None). needed_by: what needs the extra; None:
    it is optional."""
    if not _installed(package):
        lack = f"not installed; optional, for {EXTRAS[name]}" if name else f"needs {wanted or 'any version'}"
        if needed_by is not None:
            return Finding(package, "missing", f"not installed; for {needed_by}", command(name))
        return Finding(package, "warn" if name else "missing", lack.rstrip(","), command(name))
    version = metadata.version(package)
    if wanted.contains(version, prereleases=True):
        return Finding(package, "ok", version)
    return Finding(package, "missing", f"{version}, needs {wanted}", command(name))


def check_imports() -> Iterator[Finding]:
    """Imports of the fragile packages that are installed, each in its own process, as an import may crash."""
    slim = "on a slim image: apt-get install libgl1 libglib2.0-0"
    fragile = {"deepspeed": command("deepspeed"), "mmseg.models": slim, "open_clip": command("captioning")}
    for module, hint in fragile.items():
        if util.find_spec(module.split(".")[0]) is not None:
            yield _import(f"import {module}", hint)


def _import(statement: str, hint: str) -> Finding:
    try:
        done = subprocess.run(
            [sys.executable, "-c", statement], capture_output=True, text=True, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        way_out = "look for a stale lock below, or a slow disk"
        return Finding(statement, "missing", "no answer in 180 s", way_out)
    if done.returncode == 0:
        return Finding(statement, "ok", "works")
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Finding(statement, "missing", last, hint)


def check_mm_families() -> Iterator[Finding]:
    for name in ("mmengine", "mmcv", "mmsegmentation"):
        rivals = [d for d in (name, f"{name}-lite", f"onedl-{name}") if _installed(d)]
        if len(rivals) > 1:
            yield Finding(
                name,
                "warn",
                f"{' and '.join(rivals)} overwrite each other's files",
                f"pip uninstall {' '.join(rivals)}, then {command('segmentation')}",
            )


def check_tokenizer() -> Iterator[Finding]:
    """The vocabulary in open_clip's package, with which captioning tokenises offline."""
    if not _installed("open_clip_torch"):
        return
    name = "bpe_simple_vocab_16e6.txt.gz"
    files = metadata.files("open_clip_torch")
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
