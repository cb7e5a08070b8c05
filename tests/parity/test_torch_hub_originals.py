"""The laws of torch hub's DINOv2 and DINOv3 hold for the original code too, and our stand-in of it computes
the same.

They run where a checkout of it is: in the folder that DTEM_TORCH_HUB names, as `dinov2` and `dinov3`, or
where torch hub keeps what it downloaded. Nothing is downloaded here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_torch_hub
import torch
from tiny import images

ROOT = Path(__file__).parents[2]
LAWS = ["tests/laws/test_patching_laws.py", "tests/laws/test_torch_hub_laws.py"]
PACKAGES = pytest.mark.parametrize("package", ["dinov2", "dinov3"])

WRITES = """
import sys, torch
from tiny import images
from tiny_torch_hub import library_model
with torch.no_grad():
    models = {kind: library_model(kind) for kind in sys.argv[2:]}
    found = {kind: (model.state_dict(), model.forward_features(images())) for kind, model in models.items()}
torch.save(found, sys.argv[1])
"""


def originals(folder: Path, package: str) -> Path:
    """A folder that holds the original package's checkout under its name."""
    named = os.environ.get("DTEM_TORCH_HUB")
    places = [Path(named) / package] if named else []
    places.append(Path(torch.hub.get_dir()) / f"facebookresearch_{package}_main")
    found = next((place for place in places if (place / package).is_dir()), None)
    if found is None:
        pytest.skip(f"no checkout of facebookresearch/{package}; DTEM_TORCH_HUB names a folder that has one")
    (folder / package).symlink_to(found.resolve())
    return folder


def child(arguments: list[str], code: Path) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(str(ROOT / place) for place in (".", "tests/helpers", "benchmarks"))
    environment = {**os.environ, "DTEM_TORCH_HUB_CODE": str(code), "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=850
    )


@PACKAGES
def test_the_stand_in_computes_what_the_original_does(package, tmp_path):
    """With the original's own weights, under its own keys."""
    kinds = [kind for kind in tiny_torch_hub.MODELS if package in kind]
    done = child(["-c", WRITES, str(tmp_path / "found.pt"), *kinds], originals(tmp_path, package))
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for kind in kinds:
        weights, wanted = found[kind]
        model = tiny_torch_hub.library_model(kind)
        model.load_state_dict(weights)
        with torch.no_grad():
            features = model.forward_features(images())
        assert features.keys() == wanted.keys()
        for name in features.keys() - {"masks"}:
            torch.testing.assert_close(features[name], wanted[name], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@PACKAGES
def test_the_laws_hold_for_the_original(package, tmp_path):
    done = child(
        ["-m", "pytest", "-p", "no:cacheprovider", *LAWS, "-k", f"hub and {package}"],
        originals(tmp_path, package),
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "failed" not in done.stdout
