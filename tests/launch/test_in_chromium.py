"""The pages that commands write, in a real Chromium, on a screen and on a phone: readable for all, silent,
and without a script from data."""

import json
import shutil
from pathlib import Path

import pytest
from browser import chromium, look
from tinyrun import tiny_tasks_plain

from launch import cli
from pipeline.config.load import from_plain
from pipeline.data.make.digits.scenes import CLASSES, MASK_CLASSES, digit_scenes_jobs
from pipeline.data.make.write import write_shards
from pipeline.train.loop import train

HOSTILE = "</style></script><script>window.ran=1</script><img src=http://x.test/a onerror=window.ran=2>"
PAGES = ("report", "visualise", "demo")


@pytest.fixture(scope="module")
def browser():
    with chromium() as own:
        yield own


@pytest.fixture(scope="module")
def pages(browser, tmp_path_factory) -> dict[str, Path]:
    """The report of a run of three tasks, its page as `make demo` writes it, and that of its masks alone. The
    names of two classes are scripts."""
    folder = tmp_path_factory.mktemp("pages")
    shards, run = folder / "shards", folder / "run"
    names = {"classes": [HOSTILE, *CLASSES[1:]], "mask_classes": [*MASK_CLASSES[:-1], HOSTILE]}
    write_shards(digit_scenes_jobs(train=24, val=5, size=32, shard_size=24), shards, **names)
    plain = tiny_tasks_plain(shards, run, train=dict(steps=4), log=dict(pictures=2, name=HOSTILE))
    train(from_plain(plain))
    commands = [
        ["sweep", run, "--task", "digits,masks", "--policy", "tome", "--macs", "0.8", "--rounds", "1"],
        ["evaluate", run, "--task", "digits,masks", "--out", run / "evaluation.json"],
        ["visualise", run, "--num", "3", "--out", folder / "demo"],
        [
            "visualise",
            run,
            "--num",
            "2",
            "--task",
            "masks",
            "--reduction",
            "1,2",
            "--out",
            folder / "masks",
        ],
        ["report", run, "--out", folder / "report.html"],
    ]
    for words in commands:
        assert cli.main(list(map(str, words))) == 0
    made = (folder / "report.html", folder / "masks/groups_masks_dtem.html", folder / "demo/tasks_dtem.html")
    return dict(zip(PAGES, made, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_for_all_and_asks_for_nothing(browser, pages, name, width):
    assert "&lt;script&gt;" in pages[name].read_text()
    seen = look(browser, pages[name], width)
    assert not seen.said and not seen.asked and seen.ran is None
    assert not seen.faults
    assert seen.wider <= 0


@pytest.mark.slow
def test_two_runs_side_by_side_are_for_all_too(browser, pages, tmp_path):
    run = tmp_path / "other"
    shutil.copytree(pages["report"].parent / "run", run)
    config = json.loads((run / "config.json").read_text())
    config["log"]["name"] = "a name that is so long that no heading of a table on a phone has room for it"
    (run / "config.json").write_text(json.dumps(config))
    page = tmp_path / "both.html"
    assert cli.main(["report", str(pages["report"].parent / "run"), str(run), "--out", str(page)]) == 0
    for width in (1280, 400):
        seen = look(browser, page, width)
        assert not (seen.said or seen.asked or seen.faults) and seen.ran is None and seen.wider <= 0


@pytest.mark.slow
def test_what_is_wrong_in_a_page_is_seen(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><title>a</title><img src='http://x.test/a.png'><script>window.ran=1;undefined()</script>"
        "<div style='width:3000px'>wide</div>"
    )
    seen = look(browser, page, 400)
    assert seen.asked == ["http://x.test/a.png"] and seen.ran == 1 and seen.wider > 2000
    assert {"image-alt", "html-has-lang"} <= set(seen.faults) and any("undefined" in own for own in seen.said)
