"""A run whose configuration is not that of its tensors: told in one message, before it takes time or
memory."""

import resource
import shutil

import pytest
from checkpointkit import forge

from launch.saved.run import build, read_run
from pipeline.errors import PipelineError


@pytest.fixture
def stranger(trained, tmp_path):
    """`stranger(change)`: a copy of the run whose checkpoint says what `change` makes of its
    configuration."""

    def make(change):
        folder = shutil.copytree(trained, tmp_path / "run")
        for path in folder.glob("checkpoints/step_*/manifest.json"):
            forge(path, lambda facts: change(facts["config"]))
        return folder

    return make


def setting(path, value):
    def change(config):
        *parents, last = path.split(".")
        for part in parents:
            config = config[part]
        config[last] = value

    return change


LARGE = [
    ("backbone.options.embed_dim", 10**6),
    ("backbone.options.embed_dim", 12_000),
    ("backbone.options.depth", 10**5),
    ("backbone.options.depth", 40),
    ("backbone.options.mlp_ratio", 40_000.0),
    ("backbone.img_size", 1 << 40),
    ("backbone.img_size", 1 << 14),
    ("tasks.digits.head.num_classes", 10**9),
    ("tasks.digits.head.num_classes", 10**6),
    ("tasks.digits.data.img_size", -64),
    ("tasks.digits.data.img_size", 0),
    ("tasks.digits.data.workers", 10**5),
    ("tasks.digits.data.eval_batch_size", 10**12),
    ("tasks.digits.head.num_classes", 11),
    ("engine.threads", 100_000),
]


@pytest.mark.parametrize("path, value", LARGE, ids=lambda value: str(value))
def test_sizes_that_are_not_those_of_the_tensors_are_refused(stranger, path, value):
    folder = stranger(setting(path, value))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PipelineError):
        build(read_run(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "KiB"


@pytest.mark.parametrize("name", ["../x", "keys", "", "a b", "a.b", "parameters"])
def test_names_of_tasks_are_checked_as_before_training(stranger, name, dtem):
    folder = stranger(lambda config: config["tasks"].update({name: config["tasks"].pop("digits")}))
    said = dtem("evaluate", folder, code=2)
    assert "is not an identifier" in said or "torch keeps for itself" in said


def test_the_run_itself_is_taken(stranger):
    build(read_run(stranger(lambda config: None)))
