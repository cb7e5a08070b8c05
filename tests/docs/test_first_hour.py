"""docs/first_hour.md, as a newcomer types it: from a wheel, outside of the checkout, without network."""

import shlex

import numpy as np
import pytest
import timm
from pages import ROOT, blocks
from PIL import Image
from safetensors.torch import save_file
from wheelkit import build_wheel, environment_with, said

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs/first_hour.md"
PUBLISHED, TINY = "deit_small_patch16_224.fb_in1k", "deit_tiny_patch16_224"
"""The model of the page, and one that stands for it, with drawn weights, as nothing can be downloaded."""
CLASSES = ("n01440764", "n01443537", "n01484850")


def photos(folder):
    """Three classes of pictures, told apart by their colour."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 4)):
        for channel, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 90, (240, 260, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{number:03d}.jpg")


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """Each command of the page with what it printed, in order, and the folder that it ran in."""
    place = tmp_path_factory.mktemp("newcomer")
    scripts = environment_with(build_wheel(tmp_path_factory.mktemp("wheel")), place)
    photos(place / "photos")
    save_file(timm.create_model(TINY).state_dict(), place / "drawn.safetensors")
    config, loading = blocks(PAGE, "python")
    # ten classes and hours there, three classes and seconds here; everything else is the page's
    config = config.replace("num_classes=10", f"num_classes={len(CLASSES)}")
    config = config.replace(f'"{PUBLISHED}", pretrained=True', f'"{TINY}", weights="drawn.safetensors"')
    config = config.replace("epochs=10", "epochs=1").replace("batch_size=64", "batch_size=16, workers=0")
    (place / "mine.py").write_text(config)
    said_by = []
    for line in filter(None, "\n".join(blocks(PAGE, "bash")).splitlines()):
        words = shlex.split(line.replace(PUBLISHED, f"{TINY} --weights drawn.safetensors"))
        said_by.append((line, said(*words, cwd=place, scripts=scripts)))
    said_by.append(("python", said(scripts / "python", "-c", loading + "print(model.reduction)", cwd=place)))
    return place, said_by


def test_every_line_of_the_page_does_what_it_says(typed):
    place, said_by = typed
    answers = dict(said_by)
    evaluated = [text for line, text in said_by if line.startswith("dtem evaluate timm:")]
    assert len(evaluated) == 2 and all("top1" in text for text in evaluated)
    assert (place / "predicted/predictions.jsonl").read_text().count("\n") == 12
    assert "0 problems" in answers["dtem shards verify data/photos"]
    assert "top1" in answers["dtem evaluate runs/mine"]
    assert (place / "runs/try/checkpoints").is_dir() and (place / "runs/mine/config.json").is_file()
    assert list((place / "runs/mine/sweep").glob("*.png")) and (place / "runs/mine/report.html").is_file()
    assert answers["python"].strip() == "13"
