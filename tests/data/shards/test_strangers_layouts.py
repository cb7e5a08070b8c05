"""Shards as others publish them are read as they are: img2dataset's, open_clip's, pixparse's and timm's. Each
layout is made here in the form in which its program writes it."""

import json
from itertools import islice
from pathlib import Path

import pytest
from shardkit import config, dtem, image, write_tar

from pipeline.data.samples.text import build_tokenizer
from pipeline.data.shards.find import load_manifest
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.errors import SampleError

WORDS = {"type": "words", "words": ["a", "of", "photo", *(f"k{n}" for n in range(40))], "context_length": 12}
NUM = 6


def facts(number: int, **changed: object) -> dict[str, object]:
    """What img2dataset writes beside an image."""
    return {
        "url": f"https://example.org/{number}.jpg",
        "caption": f"a photo of k{number}",
        "key": f"{number:09d}",
        "status": "success",
        "error_message": None,
        "width": 12,
        "height": 12,
        "exif": "{}",
    } | changed


def downloaded(number: int, *, text: bool = True, form: str = "jpg") -> list[tuple[str, bytes]]:
    known = facts(number)
    picture = image(number, form={"jpg": "JPEG"}.get(form, form.upper()))
    caption = [(f"{number:09d}.txt", str(known["caption"]).encode())] if text else []
    return [(f"{number:09d}.{form}", picture), *caption, (f"{number:09d}.json", json.dumps(known).encode())]


def failed(number: int) -> list[tuple[str, bytes]]:
    """A sample without its image, as some versions keep them."""
    known = facts(number, status="failed_to_download", error_message="HTTP Error 404", width=None)
    return [(f"{number:09d}.json", json.dumps(known).encode())]


def img2dataset(folder: Path, **options) -> Path:
    """NNNNN.tar with its two siblings."""
    for shard in range(2):
        stem = folder / f"{shard:05d}"
        numbers = range(shard * NUM, (shard + 1) * NUM)
        write_tar(stem.with_suffix(".tar"), [m for n in numbers for m in downloaded(n, **options)])
        stem.with_suffix(".parquet").write_bytes(b"PAR1")
        stem.with_name(f"{shard:05d}_stats.json").write_text(json.dumps({"count": NUM, "successes": NUM}))
    return folder


def captions(source, split: str = "val", **options) -> dict[str, tuple[str, ...]]:
    made = config(source, **{"schema": "captioning", "tokenizer": WORDS, "eval_batch_size": 5} | options)
    loader = build_eval_loader("t", made, rank=0, world_size=1, split=split)
    return {
        key: texts
        for batch in loader
        for key, texts in zip(batch.keys, batch.targets.references, strict=True)
    }


def of_all(count: int = 2 * NUM) -> dict[str, tuple[str, ...]]:
    return {f"{number:09d}": (f"a photo of k{number}",) for number in range(count)}


@pytest.mark.parametrize("form", ["jpg", "png", "webp", "jpeg"])
def test_shards_of_img2dataset_give_their_txt(tmp_path, form):
    made = img2dataset(tmp_path, form="jpeg" if form == "jpeg" else form)
    assert captions(made) == of_all()


def test_their_words_are_counted_and_verify_takes_their_json(tmp_path, capsys):
    made = img2dataset(tmp_path)
    assert dtem("words", made) == dtem("words", made, "--caption-field", "caption") == 0
    first, second = capsys.readouterr().out.split("]\n")[:2]
    assert first == second and "'photo'" in first and "'k11'" in first
    assert dtem("make", "index", made) == dtem("verify", made) == 0


@pytest.mark.parametrize("text", [True, False])
def test_a_field_of_their_json_can_be_named(tmp_path, text):
    """Also where there is a txt, which may be another caption."""
    assert captions(img2dataset(tmp_path, text=text), caption_field="caption") == of_all()


def test_a_field_may_hold_several_texts_and_another_field_is_named_by_the_error(tmp_path, caplog):
    known = facts(3, caption=["a photo", "a k3"])
    write_tar(tmp_path / "0.tar", [("3.jpg", image(3)), ("3.json", json.dumps(known).encode())])
    assert captions(tmp_path, caption_field="caption") == {"3": ("a photo", "a k3")}
    assert captions(tmp_path, caption_field="title") == {}
    assert "has no field 'title' (fields: url, caption, key" in caplog.text
    assert captions(tmp_path) == {}
    assert "see data.caption_field" in caplog.text


def test_training_draws_from_txt(tmp_path):
    made = config(
        img2dataset(tmp_path), schema="captioning", tokenizer=WORDS, batch_size=4, max_bad_samples=0
    )
    tokenizer = build_tokenizer(WORDS)
    seen = {
        (key, tokenizer.decode(row))
        for batch in islice(build_stream("t", made, seed=1, rank=0, world_size=1), 3)
        for key, row in zip(batch.keys, batch.targets.tokens.tolist(), strict=True)
    }
    assert seen == {(key, texts[0]) for key, texts in of_all().items()}


def test_a_failed_download_is_replaced_in_training_left_out_in_evaluation_and_named(tmp_path, caplog):
    members = [m for n in range(NUM) for m in (failed(n) if n == 2 else downloaded(n))]
    write_tar(tmp_path / "00000.tar", members)
    good = of_all(NUM).keys() - {"000000002"}
    assert captions(tmp_path).keys() == good
    assert "sample '000000002': of the members that captioning reads it has json" in caplog.text
    made = config(tmp_path, schema="captioning", tokenizer=WORDS, batch_size=NUM)
    batch = next(iter(build_stream("t", made, seed=1, rank=0, world_size=1)))
    assert len(batch.keys) == NUM and set(batch.keys) == good


@pytest.mark.parametrize(
    "names",
    [
        ("name-train-0000-of-0002.tar", "name-train-0001-of-0002.tar", "name-validation-0000-of-0001.tar"),
        ("train/0000.tar", "train/0001.tar", "val/0000.tar"),
        ("cc3m-train-0000.tar", "cc3m-train-0001.tar", "cc3m-validation-0000.tar"),
    ],
)
def test_splits_are_known_by_the_names_of_the_hub(tmp_path, names):
    for shard, name in enumerate(names):
        write_tar(tmp_path / name, downloaded(shard))
    assert captions(tmp_path, "train").keys() == {"000000000", "000000001"}
    assert captions(tmp_path, "val").keys() == {"000000002"}
    splits = load_manifest(str(tmp_path)).shards.splits.tolist()
    assert sorted(splits) == ["train", "train", "val"]
    with pytest.raises(SampleError, match="split 'test'"):
        load_manifest(str(tmp_path), "test")


def test_folders_of_one_split_are_refused(tmp_path):
    for name in ("val", "validation"):
        write_tar(tmp_path / name / "0000.tar", downloaded(0))
    with pytest.raises(SampleError, match="both the split 'val'"):
        load_manifest(str(tmp_path), "val")


def test_the_imagenet_of_timm_is_read(tmp_path):
    """imagenet1k-train-0000.tar with jpg, cls and a json of facts."""
    for split, classes in {"train": (0, 2, 1), "validation": (1, 0)}.items():
        members = []
        for number, label in enumerate(classes):
            key = f"n0144{label:04d}_{number}"
            told = {"label": label, "filename": f"{key}.JPEG", "width": 12, "height": 12}
            members += [(f"{key}.jpg", image(number, form="JPEG")), (f"{key}.cls", str(label).encode())]
            members += [(f"{key}.json", json.dumps(told).encode())]
        write_tar(tmp_path / f"imagenet1k-{split}-0000.tar", members)
    made = config(tmp_path, max_bad_samples=0)
    batch = next(iter(build_stream("t", made, seed=1, rank=0, world_size=1)))
    assert sorted(batch.targets.labels.tolist()) == [0, 1, 2]
    (batch,) = build_eval_loader("t", made, rank=0, world_size=1)
    assert dict(zip(batch.keys, batch.targets.labels.tolist(), strict=True)) == {
        "n01440001_0": 1,
        "n01440000_1": 0,
    }
