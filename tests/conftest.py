"""Shared fixtures. What tests import by its bare name is in tests/helpers or benchmarks/ (`pythonpath` in
pyproject.toml)."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import forks
import interpreter  # noqa: F401 - first, before anything imports Triton
import pytest
import torch
from rounding import other_rounding
from tiny import SEED
from tinyrun import tiny_plain

import tasks  # noqa: F401 - fills the registry
from pipeline.config.load import from_plain
from pipeline.config.schema import RunConfig
from pipeline.train.loop import train

THREADS = int(os.environ.get("DTEM_TEST_THREADS", "1"))
ROUNDING = int(os.environ.get("DTEM_TEST_ROUNDING", "0"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes of `--numprocesses auto`: one more than the cores that this process may use, as many tests
    wait for others' processes; up to 4, as each takes 1 to 3 GB."""
    return min(len(os.sched_getaffinity(0)) + 1, 4)


def pytest_configure(config: pytest.Config) -> None:
    """One server of forks for all processes of `--numprocesses`."""
    if forks.PLACE not in os.environ:
        stack = ExitStack()
        stack.enter_context(forks.server())
        config.add_cleanup(stack.close)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory):
    """What tests cache is not in the user's folder; a process that they start has it from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTEM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


PATH = os.environ["PATH"]


@pytest.fixture(autouse=True, scope="session")
def java_does_not_start(tmp_path_factory):
    """The programs that score captions take 9 s of a core each time. In tests, and in processes that they
    start, scores are those of a machine whose Java fails; a test of the programs takes `with_java`."""
    folder = tmp_path_factory.mktemp("no_java")
    (folder / "java").write_text("#!/bin/sh\necho tests leave it out >&2; exit 1\n")
    (folder / "java").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture
def with_java(monkeypatch):
    """The machine's own Java; skips where it has none."""
    if shutil.which("java", path=PATH) is None:
        pytest.skip("java is not on PATH")
    monkeypatch.setenv("PATH", PATH)


@pytest.fixture(autouse=True)
def fixed_threads_seed_and_rounding(request):
    """`make test-kernels` asks for others."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    with other_rounding(0 if request.node.get_closest_marker("own_rounding") else ROUNDING):
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder of digit_scenes shards: 80 samples to train on, 25 to evaluate, 32x32 pixels."""
    from pipeline.data.make.digits.scenes import CLASSES, MASK_CLASSES, digit_scenes_jobs
    from pipeline.data.make.write import write_shards

    folder = tmp_path_factory.mktemp("digits")
    write_shards(
        digit_scenes_jobs(train=80, val=25, size=32, shard_size=32),
        folder,
        classes=CLASSES,
        mask_classes=MASK_CLASSES,
    )
    return folder


@pytest.fixture(scope="session")
def moving_digits(tmp_path_factory) -> Path:
    """A folder of moving_digits shards: 40 clips to train on, 12 to evaluate, of 8 frames of 32x32 pixels."""
    from pipeline.data.make.digits.moving import MOTIONS, moving_digits_jobs
    from pipeline.data.make.write import write_shards

    folder = tmp_path_factory.mktemp("moving_digits")
    jobs = moving_digits_jobs(train=40, val=12, size=32, frames=8, form="png", shard_size=20)
    write_shards(jobs, folder, classes=MOTIONS)
    return folder


@pytest.fixture
def tiny_run(digits, tmp_path) -> Callable[..., RunConfig]:
    """A real run of a few steps: `tiny_run(train={...}, ...)` replaces fields, by section; `augment` and
    `data` are the task's."""

    def make(
        output: Path | None = None, *, augment: Any = None, data: Any = None, **sections: dict[str, Any]
    ) -> RunConfig:
        return from_plain(
            tiny_plain(digits, output or tmp_path / "run", augment=augment, data=data, **sections)
        )

    return make


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory) -> Path:
    """The folder of a run of 4 steps with averaged weights: policy dtem, reduction 2 of 16 patches, 3
    blocks."""
    output = tmp_path_factory.mktemp("trained") / "run"
    return train(from_plain(tiny_plain(digits, output, train=dict(steps=4))))
