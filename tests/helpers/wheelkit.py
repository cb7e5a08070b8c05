"""The package as a wheel, installed where no checkout is."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
OFFLINE = ("--no-deps", "--no-index")


def said(*command: object, cwd: Path, scripts: Path | None = None) -> str:
    """What a command prints that succeeds, where nothing points to a checkout. scripts: a folder before all
    others on PATH."""
    places = [sysconfig.get_path("scripts"), os.environ["PATH"]]  # of ninja
    places = places if scripts is None else [str(scripts), *places]
    mine = {"PATH": os.pathsep.join(places), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    mine |= {"TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", f"{sys.prefix}/torch_extensions")}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | mine
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """A wheel of the checkout's files, built in a copy, as setuptools leaves a folder `build` behind."""
    git = ("git", "-c", f"safe.directory={ROOT}", "-C", ROOT)
    said(*git, "checkout-index", "--all", f"--prefix={folder}/source/", cwd=folder)
    options = ("--no-build-isolation", "--wheel-dir", folder)
    said(*PIP, "wheel", *OFFLINE, *options, folder / "source", cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def environment_with(wheel: Path, folder: Path) -> Path:
    """The folder of the programs of a new environment in `folder`: the wheel, and what this Python's
    environment has."""
    venv.create(folder / "env", symlinks=True)
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "env/bin/python"
    said(*PIP, "--python", python, "install", *OFFLINE, "--force-reinstall", wheel, cwd=folder)
    return folder / "env/bin"
