"""What commands write can be read by whom the umask lets read, and a write that fails leaves nothing."""

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tinyrun import tiny_plain

from launch.exported.exporting import exporting
from pipeline.config.load import from_plain
from pipeline.train.loop import train

MASK = 0o007
"""Lets the group write and others nothing: no default of a library is the same."""
COMMANDS = [
    "evaluate RUN --predictions OUT/predictions.jsonl",
    "visualise RUN --num 1 --out OUT --animate",
    "sweep RUN --policy dtem --reduction 2 --rounds 1 --out OUT",
    "board RUN --policies dtem --reduction 2 --rounds 0 --out OUT",
    "report RUN --out OUT/report.html",
    "predict RUN RUN/picture.png --out OUT",
    "convert RUN --out OUT/weights.safetensors",
    "export RUN --out OUT",
    *(
        pytest.param(f"export RUN --out OUT --format {form}", marks=pytest.mark.slow)
        for form in ("pt2", "onnx")
    ),
    "export RUN --out OUT --adapter",
    "shards make digit_scenes OUT --train 20 --val 10 --size 32 --shard-size 10 --workers 2",
    "shards make index SHARDS",
    "bench RUN --batch-size 1 --rounds 1 --out OUT/bench.json",
]


@contextmanager
def masked() -> Iterator[None]:
    before = os.umask(MASK)
    try:
        yield
    finally:
        os.umask(before)


def wrong_modes(folder: Path) -> list[str]:
    """Files and folders with other modes than the umask gives."""
    return [
        f"{path}: {stat.S_IMODE(path.stat().st_mode):o}"
        for path in folder.rglob("*")
        if stat.S_IMODE(path.stat().st_mode) != ((0o777 if path.is_dir() else 0o666) & ~MASK)
    ]


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    """The folder of a run with all that a run writes, which was trained under the umask."""
    pytest.importorskip("tensorboard")
    plain = tiny_plain(digits, tmp_path_factory.mktemp("masked") / "run", train=dict(steps=3, save_every=2))
    plain["train"]["mirror"] = str(Path(plain["output"]).parent / "mirror")
    plain["log"] = dict(trackers=["tensorboard", "csv"], pictures=1)
    with masked():
        folder = train(from_plain(plain))
    return folder


def test_a_run_and_its_mirror(run):
    inside = {path.name for path in run.parent.rglob("*")}
    assert {
        "config.json",
        "metrics.jsonl",
        "manifest.json",
        "ema.safetensors",
        "pictures",
        "mirror",
    } <= inside
    assert not wrong_modes(run.parent)


def test_a_checkpoint_that_was_fetched_from_a_mirror(run, digits, tmp_path):
    plain = tiny_plain(digits, tmp_path / "again", train=dict(steps=3, save_every=2))
    with masked():
        train(from_plain(plain), resume=(run.parent / "mirror").as_uri())
    assert list((tmp_path / "again" / "checkpoints").glob("step_*/model.safetensors"))
    assert not wrong_modes(tmp_path / "again")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_writes(command, run, digits, dtem, tmp_path):
    out, shards = tmp_path / "out", tmp_path / "shards"
    (picture,) = [path for path in (run / "pictures").rglob("*.png")][:1]
    if "SHARDS" in command:
        shards.mkdir()
        (shards / "a.tar").write_bytes(next(digits.glob("*.tar")).read_bytes())
    words = command.replace("RUN/picture.png", str(picture)).replace("RUN", str(run))
    words = words.replace("OUT", str(out)).replace("SHARDS", str(shards))
    with masked():
        dtem(*words.split())
    written = [path for place in (out, shards) if place.exists() for path in place.rglob("*")]
    assert written and not wrong_modes(out)
    assert not [line for line in wrong_modes(shards) if "/a.tar:" not in line]


@contextmanager
def no_file_larger_than(num_bytes: int) -> Iterator[None]:
    """A disk with a quota, as far as a process sees it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("form", "code"),
    [("safetensors", 4), *(pytest.param(form, 2, marks=pytest.mark.slow) for form in ("pt2", "onnx"))],
)
def test_an_export_that_cannot_be_written_leaves_all_as_it_was(form, code, trained, dtem, tmp_path):
    with no_file_larger_than(10_000):
        said = dtem("export", trained, "--out", tmp_path / "a" / "b", "--format", form, code=code)
    assert "too large" in said and not list(tmp_path.iterdir())
    dtem("export", trained, "--out", tmp_path / "old", "--format", form)
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    with no_file_larger_than(10_000):
        dtem("export", trained, "--out", tmp_path / "old", "--format", form, code=code)
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_several_files_take_their_places_together_or_not_at_all(tmp_path):
    out = tmp_path / "a" / "model.onnx"

    def write(texts: list[str], fails: bool = False) -> None:
        with exporting(out, ("config.json", "model.json")) as part:
            for text in texts:
                part.with_name(part.name + text).write_text(f"new {text}")
            if fails:
                raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write(["", ".data"], fails=True)
    assert not list(tmp_path.iterdir())
    write(["", ".data"])
    (tmp_path / "a" / "model.json").write_text("of the first")
    (tmp_path / "a" / "config.json").write_text("of the first")
    with pytest.raises(OSError, match="no more"):
        write([""], fails=True)
    assert {path.name for path in out.parent.iterdir()} == {
        "model.onnx",
        "model.onnx.data",
        "model.json",
        "config.json",
    }
    write([""])
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"], "nothing stays of the one before"
