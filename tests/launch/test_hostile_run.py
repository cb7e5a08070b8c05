"""Commands on a stranger's run: nothing is written through its links, and its data says nothing to a terminal
or a page."""

import json
import shutil

import pytest
from textpage import page_of

from launch.pictures.html_page import write_html
from launch.report.tables import markdown
from pipeline.errors import ConfigError, SampleError, printable

HOSTILE = "\x1b]0;pwn\x07 \x9b2J \u202e\nssh-ed25519 AAAA\r\x00\u2028"


@pytest.fixture
def given(trained, tmp_path):
    results = shutil.ignore_patterns("visualise", "sweep", "board")
    return shutil.copytree(trained, tmp_path / "given", ignore=results)


@pytest.mark.parametrize("name", ["visualise/groups_digits_dtem.png", "visualise/groups_digits_dtem.html"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_picture_takes_the_place_of_a_link(given, tmp_path, dtem, name, exists):
    target, path = tmp_path / "precious", given / name
    if exists:
        target.write_text("precious")
    path.parent.mkdir()
    path.symlink_to(target)
    dtem("visualise", given, "--num", 1)
    assert target.exists() == exists and (not exists or target.read_text() == "precious")
    assert path.is_file() and not path.is_symlink()


POINT = ("--macs", "0.9", "--rounds", 0)
WRITING = [("visualise", "--num", 1), ("sweep", *POINT), ("board", *POINT)]


@pytest.mark.parametrize("command", WRITING)
def test_a_folder_of_results_that_is_a_link_is_refused(given, tmp_path, dtem, command):
    (tmp_path / "elsewhere").mkdir()
    (given / command[0]).symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in dtem(command[0], given, *command[1:], code=2)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_export_is_not_written_through_a_link(trained, tmp_path, dtem):
    (tmp_path / "out").mkdir()
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_text("precious")
        (tmp_path / "out" / name).symlink_to(tmp_path / name)
    assert "is a symbolic link" in dtem("export", trained, "--out", tmp_path / "out", code=2)
    assert all((tmp_path / name).read_text() == "precious" for name in ("model.safetensors", "model.json"))


def test_scores_take_the_place_of_a_link(trained, tmp_path, dtem):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "scores.json").symlink_to(tmp_path / "precious")
    dtem("evaluate", trained, "--out", tmp_path / "scores.json")
    assert (tmp_path / "precious").read_text() == "precious" and "scores" in json.loads(
        (tmp_path / "scores.json").read_text()
    )


@pytest.mark.parametrize(
    "text", ["dog", "Straße 5 %", "猫\u3000犬", "می\u200cخواهم", "👩\u200d🚀", "<b>&", "a\u00a0b"]
)
def test_what_is_no_command_stays_as_it_is(text):
    assert printable(text) == text


def test_what_is_a_command_is_shown():
    assert printable(HOSTILE).isprintable()
    assert printable("\x1b\n\u202e\udc80") == r"\x1b\n\u202e\udc80"


def test_neither_table_nor_message_nor_page_passes_on_a_command(tmp_path):
    assert (
        "\x1b" not in markdown(["class", HOSTILE], [[HOSTILE, "1"]])
        and markdown(["a"], [[HOSTILE]]).count("\n") == 2
    )
    assert str(SampleError(f"sample {HOSTILE!s}")).count("\x1b") == 0
    page = write_html(page_of(HOSTILE), tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.isprintable()
    assert str(ConfigError("one\ntwo")) == "one\ntwo"
