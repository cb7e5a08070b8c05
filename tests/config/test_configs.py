"""Every file in configs/ that a user would start resolves, and names only what is there."""

import re
from pathlib import Path

import pytest

import pipeline.data.samples  # noqa: F401  (registration)
import tasks  # noqa: F401  (registration)
from pipeline.backbone.build import model_facts
from pipeline.backbone.weights.preprocessing import complete_data
from pipeline.config.load import from_plain, load_config, to_plain
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.table import ShardTable
from pipeline.model import TASKS
from pipeline.objectives import OBJECTIVES
from pipeline.plan.resolve import resolve

NUM_SAMPLES = {"imagenet": 1_281_167, "cifar10": 45_000, "digits": 10_000, "digits_segmentation": 4_000}
NUM_SAMPLES |= {
    "ade20k": 20_210,
    "cityscapes": 2_975,
    "pascal_voc": 1_464,
    "camvid": 367,
    "scenes_captioning": 12_000,
}
NUM_SAMPLES |= {"coco_captions": 113_287, "digits_captioning": 12_000}
NUM_SAMPLES |= {"kinetics": 240_436, "moving_digits": 12_000}
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
BASE_RECIPES = [
    path
    for room in ("merging", "schedule", "task")
    for path in sorted((Path(__file__).parents[2] / "configs" / "_base_" / room).glob("*.py"))
]
BASE_TASKS = sorted((Path(__file__).parents[2] / "configs" / "_base_" / "task").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_resolves(path, caplog):
    config = load_config(path)
    world_size, facts = 1 if config.engine.type == "local" else 8, model_facts(config.backbone)
    resolved = resolve(complete_data(config, facts), world_size, facts, NUM_SAMPLES)
    assert resolved.total_steps and resolved.total_steps > 0
    assert "has mean" not in caplog.text and "has std" not in caplog.text, "its weights want other pixels"
    assert from_plain(to_plain(config)) == config
    assert config.output == f"runs/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_names_only_what_is_registered(path):
    config = load_config(path)
    OBJECTIVES.get(config.objective.type)
    for task in config.tasks.values():
        TASKS.get(task.type)
        DATASETS.get(task.data.schema)


@pytest.mark.parametrize("path", BASE_TASKS, ids=lambda path: path.stem)
def test_a_base_task_fits_its_schema(path, tmp_path):
    run = tmp_path / "run.py"
    run.write_text(f"_base_ = ['{path}']\nbackbone = dict(name='x')\ntrain = dict(steps=1)\noutput = 'x'\n")
    for name, task in load_config(run).tasks.items():
        names = tuple(str(number) for number in range(task.head.get("num_classes", 0)))
        assert (
            DATASETS.build(task.data.schema, task.data, Manifest(ShardTable.of([]), (), names)).classes
            == names
        )
        assert name == path.stem and name in NUM_SAMPLES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_how_it_is_run(path):
    head = path.read_text().split('"""')[1]
    for word in ("command", "source", "hardware", "expected"):
        assert re.search(rf"^{word} ", head, re.M), f"the head comment of {path.name} does not say its {word}"
    assert f"configs/{path.name}" in head
    if path.stem.startswith(("imagenet", "ade20k", "coco", "multitask", "kinetics")):
        assert re.search(r"^differs ", head, re.M), (
            f"the head comment of {path.name} names a recipe and does not say how it differs"
        )


@pytest.mark.parametrize("path", BASE_RECIPES, ids=lambda path: path.stem)
def test_a_base_says_where_its_recipe_is_from(path):
    assert re.search(r"^source ", path.read_text().split('"""')[1], re.M)


def test_a_step_has_the_papers_images():
    for path in (path for path in CONFIGS if path.stem.startswith("imagenet")):
        config = load_config(path)
        views = config.tasks["imagenet"].data.views
        assert views * resolve(config, 8, model_facts(config.backbone)).global_batch["imagenet"] in (
            {2064} if "deit3" in path.stem else {1024, 1008}
        )
