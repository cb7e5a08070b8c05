"""The mistakes that everybody makes, typed as they are: one message that names the way out, and exit code
2."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinyrun import tiny_plain

from launch import cli, train

OF_RUNS = [
    ("evaluate {run} --policy tom", ["tome"]),
    ("evaluate {run} --task digit", ["digits"]),
    ("evaluate {run} --checkpoint step_9", ["step_00000004"]),
    ("evaluate {run} --split tset", ["val"]),
    ("evaluate nothing_here", ["is not", "nothing_here"]),
    ("visualise {run} --blocks 30", ["1 to 3"]),
    ("sweep {run} --macs 70", ["0.7"]),
    ("sweep {run} --macs 0.01", ["the reasons above"]),
    ("board {run} --policies tom", ["tome"]),
    ("export {run} --out {run}", ["give"]),
    ("export {run} --out new --policy dtm", ["dtem"]),
]
OF_TRAINING = [
    ("train configs/no_such.py", ["does not exist", "configs/"]),
    ("train config.json --set tasks.digits.head.num_classes=3", ["10 classes", "num_classes=10"]),
    ("train config.json --set backbone.img_size=70", ["64", "72"]),
    (
        "train config.json --set optim.lrr=1 --set merging.polcy=a --set trian.steps=2",
        ["lr", "policy", "train"],
    ),
    ("train config.json --set tasks.digits.data.train=nowhere", ["tasks.digits.data.train", "nowhere"]),
    ("train config.json --set tasks.digits.data.schema=segmantation", ["segmentation"]),
    ("train config.json --set merging.reduction=32", ["3 blocks", "largest even reduction"]),
    ("train config.json --set merging.reduction=9 --set merging.policy=none", ["merging.reduction"]),
    ("train config.json --set engine.precision=fp32x", ["fp32", "bf16"]),
    ("train config.json --set train.mode=moduler", ["modular"]),
    ("train config.json --set optim.lr=1e-3x", ["optim.lr", "number"]),
    ("train config.json --set 'optim.lr=1e-3 optim.betas=2'", ["optim.lr"]),
    ("train config.json --set optim.lr", ["section.key=value", "optim.lr=1e-4"]),
    ("train config.json --resume runs/nope", ["runs/nope"]),
    ("train broken.json", ["broken.json"]),
    ("train empty.json", ["tasks"]),
    ("train base_missing.py", ["no_such_base.py", "from the config's folder"]),
    ("train config.json --set output=/proc/out", ["/proc/out"]),
    ("train config.json --set tasks.digits.data.train=photos", ["classes", "cat", "dog", "one tree"]),
    ("train", ["CONFIG"]),
    ("trian config.json", ["train"]),
]
OF_SHARDS = [
    ("shards verify nowhere", ["nowhere"]),
    ("shards make imagefolder nowhere out", ["nowhere is not a folder", "SRC/train/CLASS"]),
    ("shards make imagefolder damaged out", ["empty.jpg", "remove"]),
    ("shards make captions captions.csv out", ["picture, words", "image and caption"]),
    ("shards make imagfolder photos out", ["imagefolder"]),
]
OF_PUBLISHED = [
    ("evaluate timm:vit_tiny_patch16_244 --data photos", ["vit_tiny_patch16_224"]),
    ("evaluate timm:resnet50 --no-pretrained --data photos", ["resnet50", "ViT"]),
    ("evaluate timm:vit_tiny_patch16_224 --no-pretrained", ["--data"]),
    ("teach timm:vit_tiny_patch16_224 --no-pretrained --data nowhere", ["nowhere"]),
]


@pytest.fixture
def here(digits, tmp_path, monkeypatch):
    """A folder with what a newcomer has: a config, photos, and files that are not what they seem."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    Path("config.json").write_text(json.dumps(tiny_plain(digits, Path("runs/mine"))))
    Path("broken.json").write_text('{"tasks": ')
    Path("empty.json").write_text("{}")
    Path("base_missing.py").write_text('_base_ = ["no_such_base.py"]\n')
    Path("captions.csv").write_text("picture,words\na.jpg,a cat\n")
    for place in ("photos/train/cat", "photos/train/dog", "photos/val/cat", "damaged/train/cat"):
        Path(place).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{place}/a.png")
    Path("damaged/train/cat/empty.jpg").touch()
    return tmp_path


def mistaken(command: str, capsys) -> str:
    """The message of a mistake: nothing but it, without a traceback."""
    try:
        code = cli.main(words_of(command))
    except SystemExit as err:
        code = err.code
    said = capsys.readouterr()
    assert code == 2, (code, said.out[-500:], said.err[-2000:])
    assert "Traceback" not in said.err and 'File "' not in said.err
    return said.err


def words_of(command: str) -> list[str]:
    return [word.strip("'") for word in re.findall(r"'[^']*'|\S+", command)]


@pytest.mark.parametrize(("command", "names"), OF_TRAINING + OF_SHARDS + OF_PUBLISHED)
def test_a_mistake_before_any_run(here, capsys, command, names):
    told = mistaken(command, capsys)
    assert not [name for name in names if name not in told], told


@pytest.mark.parametrize(("command", "names"), OF_RUNS)
def test_a_mistake_about_a_run(here, trained, capsys, command, names):
    before = files_of(trained)
    told = mistaken(command.format(run=trained), capsys)
    assert not [name for name in names if name not in told], told
    assert files_of(trained) == before and not (here / "new").exists()


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["DTEM_KERNELS", "DTEM_ATTENTION", "DTEM_PACKED_WEIGHTS"])
def test_a_way_to_compute_that_there_is_not_is_told_at_once(name, capsys, monkeypatch):
    """Else at the first merge on a GPU, or never."""
    monkeypatch.setattr("sys.argv", ["train.py", "nothing_here.py"])
    monkeypatch.setenv(name, "off")
    assert (cli.main(["shards", "info", "nothing_here"]), train.main()) == (2, 2)
    assert capsys.readouterr().err.count(f"{name} is 'off'; give one of auto, ") == 2
