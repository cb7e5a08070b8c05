"""A run that was trained with relative paths is found again from other folders."""

import logging
from pathlib import Path

import pytest
from tinyrun import tiny_plain

from pipeline.config.load import from_plain
from pipeline.train.loop import train


@pytest.fixture(scope="module")
def project(digits, tmp_path_factory) -> Path:
    """A folder with data/digits and runs/one, trained there by relative paths."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(settings(Path("runs/one")))
    return folder


def settings(output: Path, **data: str):
    data = dict(train="data/digits/train-{00000..00002}.tar", val="data/digits") | data
    return from_plain(tiny_plain(Path("data/digits"), output, data=data, train=dict(steps=3)))


@pytest.mark.parametrize(
    "command",
    [
        "evaluate RUN --task digits",
        "visualise RUN --num 1 --out OUT",
        "sweep RUN --policy dtem --reduction 2 --rounds 1 --out OUT",
        "board RUN --policies tome --reduction 2 --rounds 0 --out OUT",
        "bench RUN --batch-size 1 --rounds 1",
        "report RUN --out OUT",
        "config check RUN",
        "config check RUN/config.json",
    ],
)
def test_each_command_finds_the_data(dtem, project, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    dtem(*command.replace("RUN", str(project / "runs/one")).replace("OUT", str(tmp_path / "out")).split())


def test_a_project_that_was_moved(dtem, project, tmp_path, monkeypatch, caplog):
    moved = tmp_path / "moved"
    project.rename(moved)
    try:
        monkeypatch.chdir(moved)
        dtem("evaluate", "runs/one")
        monkeypatch.chdir(tmp_path)
        said = dtem("evaluate", "moved/runs/one", code=2)
        assert (
            f"tasks.digits.data.val: shards: cannot list data/digits, which is {tmp_path}/data/digits" in said
        )
        dtem("evaluate", "moved/runs/one", "--set", "tasks.digits.data.val=moved/data/digits")
    finally:
        moved.rename(project)


def test_the_run_goes_on_with_data_that_are_written_otherwise(project, monkeypatch, caplog):
    monkeypatch.chdir(project)
    caplog.set_level(logging.WARNING)
    data = project / "data/digits"
    train(settings(Path("runs/one"), val=f"{data}/", train=f"{data}/train-{{00000..00002}}.tar"))
    assert "continues with" not in caplog.text
    train(settings(Path("runs/one"), val=f"{data.resolve()}"))
    assert "the run continues with tasks.digits.data.val: 'data/digits' there" in caplog.text
