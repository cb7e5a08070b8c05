"""`dtem predict` and `load_run`: what they say is what evaluation says."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dtem import load_run
from launch.measure.compute import first_batch
from launch.predict.images import Picture, pictures_of
from launch.predict.results import Caption, Classes, Mask, Unread
from launch.saved.run import build, read_run
from pipeline.data.augment.images import eval_transform
from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.reader import SampleReader
from pipeline.errors import ConfigError, SampleError
from pipeline.model import MultiTaskModel


def pictures(shards, folder, count=5):
    """The first images of the val split, as files in a folder."""
    manifest = load_manifest(str(shards), "val")
    reader = SampleReader(manifest, 1, default_cache(), 1.0)
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(reader.read(0, number)["jpg"])
    return folder


@pytest.fixture(scope="module")
def photos(digits, tmp_path_factory):
    return pictures(digits, tmp_path_factory.mktemp("pictures") / "photos")


def test_classes_are_those_of_evaluation(trained, photos):
    saved = read_run(trained)
    data = replace(saved.config.tasks["digits"].data, eval_batch_size=5)
    batch = first_batch("digits", data)
    model = build(saved)
    logits = model.tasks["digits"].infer(model.encoder("digits"), batch.to("cpu"))
    found = load_run(trained, device="cpu").predict(photos, top=10, groups=True)
    assert [own.image for own in found] == [str(photos / f"{number}.jpg") for number in range(5)]
    for own, row in zip(found, logits.double().softmax(-1), strict=True):
        assert isinstance(own, Classes) and own.groups is not None
        assert sum(own.probabilities) == pytest.approx(1)
        torch.testing.assert_close(row[list(own.labels)], torch.tensor(own.probabilities).double())
        assert own.names == tuple(saved.classes("digits")[label] for label in own.labels)
        assert own.groups.num_tokens == 11 and len(np.unique(own.groups.slots)) == 10


def test_all_forms_of_an_image_are_one_image(trained, photos):
    run = load_run(trained, device="cpu")
    path = photos / "0.jpg"
    (picture,) = pictures_of(path)
    assert isinstance(picture, Picture)
    tensor = picture.pixels
    array = tensor.permute(1, 2, 0).numpy()
    forms = [path, str(path), Image.fromarray(array), array, tensor, tensor.float() / 255, tensor[None]]
    first, *others = [run.predict(form)[0] for form in [*forms, array[None]]]
    for other in others:
        assert replace(other, image=first.image) == first
    assert run.predict([tensor, path])[0].image == "image 0"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1"])
def test_a_pillow_image_of_any_mode_is_read_as_its_file(mode, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (8, 9), dtype=np.uint16)
    image = Image.fromarray(values * 257) if mode == "I;16" else Image.fromarray(values.astype(np.uint8))
    image = image if mode == "I;16" else image.convert("RGB").convert(mode)
    image.save(tmp_path / "a.png")
    (here,), (there,) = list(pictures_of(image)), list(pictures_of(tmp_path / "a.png"))
    assert isinstance(here, Picture) and isinstance(there, Picture)
    assert torch.equal(here.pixels, there.pixels)


@pytest.mark.parametrize(
    "wrong", [3, np.zeros((4, 4, 2), np.uint8), torch.zeros(1, 4, 4), torch.ones(3, 2, 2) * 2]
)
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ConfigError, match="give paths, PIL images"):
        list(pictures_of([wrong]))


def test_a_damaged_image_is_told_and_the_others_are_done(trained, photos, dtem, tmp_path, capsys):
    good = pictures_folder = tmp_path / "mixed"
    good.mkdir()
    for number in range(2):
        (good / f"{number}.jpg").write_bytes((photos / f"{number}.jpg").read_bytes())
    (good / "bad.jpg").write_bytes((photos / "2.jpg").read_bytes()[:300])
    said = dtem("predict", trained, pictures_folder, "--out", tmp_path / "out", code=1)
    assert "1 image could not be read: " in said and "bad.jpg" in said
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [("error" in line, line["image"].rpartition("/")[2]) for line in lines] == [
        (False, "0.jpg"),
        (False, "1.jpg"),
        (True, "bad.jpg"),
    ]
    run = load_run(trained, device="cpu")
    with pytest.raises(SampleError, match="bad.jpg: "):
        run.predict(good)
    assert [isinstance(own, Unread) for own in run.stream(good)] == [False, False, True]
    (known,) = run.predict(good / "0.jpg")
    assert isinstance(known, Classes) and lines[0]["classes"][0]["name"] == known.names[0]
    with Image.open(tmp_path / "out" / lines[0]["groups"]) as groups:
        assert min(groups.size) >= 224


def test_a_mask_has_the_size_of_its_image_and_is_that_of_evaluation(segmenter, scenes, dtem, tmp_path):
    saved = read_run(segmenter)
    batch = first_batch("scenes", saved.config.tasks["scenes"].data)
    model = build(saved)
    (labels,) = model.tasks["scenes"].infer(model.encoder("scenes"), batch.to("cpu"))
    photos = pictures(scenes, tmp_path / "photos", 1)
    dtem("predict", segmenter, photos, "--out", tmp_path / "out")
    (line,) = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    with Image.open(tmp_path / "out" / line["mask"]) as written:
        assert written.mode == "L" and np.array_equal(np.array(written), labels.numpy())
    assert sum(own["share"] for own in line["classes"]) == pytest.approx(1)
    with Image.open(tmp_path / "out" / line["overlay"]) as overlay:
        assert overlay.mode == "RGB" and overlay.size == written.size
    (found,) = load_run(segmenter, device="cpu").predict(torch.zeros(3, 21, 35, dtype=torch.uint8))
    assert isinstance(found, Mask) and found.labels.shape == (21, 35)


def test_captions_and_several_tasks(three_tasks, photos, dtem):
    run = load_run(three_tasks("shared"), device="cpu")
    with pytest.raises(ConfigError, match="several tasks; give task, one of digits, captions, masks"):
        run.predict(photos)
    found = run.predict(photos, task="captions")
    assert all(isinstance(own, Caption) and own.text for own in found)
    kinds = [type(own) for own in run.stream(photos / "0.jpg")]
    assert kinds == [Classes, Caption, Mask]
    said = dtem("predict", three_tasks("shared"), photos, "--task", "captions")
    assert isinstance(found[0], Caption) and found[0].text in said and "digits" not in said.partition("\n")[2]


def test_a_published_model_says_what_timm_says(photos, dtem):
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.imagenet_info import ImageNetInfo

    torch.manual_seed(0)
    run = load_run("timm:test_vit", pretrained=False, img_size=64, device="cpu", precision="fp32")
    plain = timm.create_model("test_vit", img_size=64).eval()
    plain.load_state_dict(run.model.state_dict())
    config = resolve_data_config({}, model=plain)
    (found,) = run.predict(photos / "0.jpg", top=3)
    (picture,) = pictures_of(photos / "0.jpg")
    assert isinstance(picture, Picture) and isinstance(found, Classes)
    from pipeline.config.schema import AugmentConfig

    own = AugmentConfig(crop_pct=config["crop_pct"], interpolation=config["interpolation"])
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    pixels = (eval_transform(own, 64)(picture.pixels) / 255 - mean) / std
    with torch.no_grad():
        shares = plain(pixels[None])[0].softmax(-1)
    torch.testing.assert_close(
        shares[list(found.labels)].double(), torch.tensor(found.probabilities).double()
    )
    assert found.names[0] == ImageNetInfo().index_to_description(found.labels[0])
    merged = load_run(
        "timm:test_vit", pretrained=False, img_size=64, policy="tome", reduction=2, device="cpu"
    )
    (own,) = merged.predict(photos / "0.jpg", groups=True)
    assert own.groups is not None and own.groups.num_tokens == 5 + len(np.unique(own.groups.slots)) - 4


def test_mistakes_name_the_way_out(trained, photos, dtem, tmp_path):
    assert "there is no image or folder nothere.jpg" in dtem("predict", trained, "nothere.jpg", code=2)
    assert "has no task 'x'; it has digits" in dtem("predict", trained, photos, "--task", "x", code=2)
    assert "holds no pictures" in dtem("predict", trained, tmp_path, code=2)
    assert "adapter goes with a published model" in dtem("predict", trained, photos, "--adapter", "a", code=2)
    said = dtem("predict", "timm:vit_small_patch14_dinov2", "--no-pretrained", photos, code=2)
    assert "has no classes to predict" in said
    assert "largest even reduction is 5" in dtem("predict", trained, photos, "--reduction", 9, code=2)


@pytest.mark.parametrize("policy", ["dtem", "random"])
def test_a_loaded_model_can_learn_after_it_has_predicted(trained, photos, policy):
    """Nothing that inference mode made is left in it."""
    run = load_run(trained, policy=policy, reduction=2, device="cpu")
    run.predict(photos / "0.jpg")
    model = run.model.requires_grad_().train()
    assert isinstance(model, MultiTaskModel)
    batch = first_batch("digits", read_run(trained).config.tasks["digits"].data).to("cpu")
    model.predict(batch, reduction=2, relaxed=False).loss.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.backbone.blocks[0].mlp.parameters()
    )
