"""Sets of images and captions become shards; what does not fit is named; the words of the captions make a
vocabulary."""

import ast
import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from captionkit import SET, Entry, entries, karpathy, pictures
from PIL import Image
from shardkit import dtem, image, write_tar

from pipeline.data.layouts import CAPTIONS, read_captions
from pipeline.data.samples.text import build_tokenizer
from pipeline.data.shards.find import load_manifest
from pipeline.errors import ConfigError, SampleError

CLEAN = {"A man.", "Two men", "a \u201cman\u201d"}


def as_csv(root: Path, listed: list[Entry]) -> Path:
    with (root / "table.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "caption", "split"])
        for entry in listed:
            for text in entry["captions"] or [""]:  # pyright: ignore
                writer.writerow([7, entry["image"], text, entry["split"]])
    return root / "table.csv"


def as_jsonl(root: Path, listed: list[Entry]) -> Path:
    lines = [
        {"image": entry["image"], "split": entry["split"], "captions": entry["captions"]} for entry in listed
    ]
    (root / "table.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    return root / "table.jsonl"


FORMS: dict[str, tuple[str, Callable[[Path, list[Entry]], Path]]] = {
    "karpathy": ("coco_captions", karpathy),
    "csv": ("captions", as_csv),
    "jsonl": ("captions", as_jsonl),
}


@pytest.fixture(params=FORMS)
def make(request, tmp_path) -> Callable[..., Path]:
    """Writes the set in one of the forms, then its shards with one process; the folder of the shards."""
    kind, write = FORMS[request.param]
    root = pictures(tmp_path / "tree")

    def made(listed: list[Entry], *options: object) -> Path:
        dtem("make", kind, write(root, listed), tmp_path / "out", "--workers", 1, *options)
        return tmp_path / "out"

    return made


def read(folder: Path) -> dict[str, tuple[str, list[str], bytes]]:
    """key -> split, captions, picture."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore
        for name, data in files.items():
            if name.endswith(".json"):
                key = name.removesuffix(".json")
                found[key] = (path.name.split("-")[0], json.loads(data)["captions"], files[f"{key}.jpg"])
    return found


def test_every_layout_has_a_form():
    assert CAPTIONS.keys() == {kind for kind, _ in FORMS.values()}


def test_a_set_becomes_shards_with_its_captions_in_order(make, tmp_path, capsys):
    found = read(make(entries(), "--shard-size", 2))
    assert "5 samples, 4 shards" in capsys.readouterr().out
    assert found == {
        name.removesuffix(".jpg"): (
            split,
            [" ".join(text.split()) for text in captions],
            (tmp_path / "tree" / name).read_bytes(),
        )
        for name, (split, captions) in SET.items()
    }
    assert set(found["train2014/COCO_train_1"][1]) == CLEAN
    manifest = load_manifest(str(tmp_path / "out"))
    assert manifest.schema == ("jpg", "json") and manifest.classes == ()
    assert dtem("verify", tmp_path / "out", "--workers", 1) == 0


def test_all_forms_make_the_same_shards(tmp_path):
    root, digests = pictures(tmp_path / "tree"), set()
    for name, (kind, write) in FORMS.items():
        dtem("make", kind, write(root, entries()), tmp_path / name, "--workers", 2)
        digests.add(tuple(shard.sha256 for shard in load_manifest(str(tmp_path / name)).shards))
    assert len(digests) == 1


def test_larger_pictures_can_be_shrunk(make):
    found = read(make(entries(), "--size", 16))
    assert all(min(Image.open(io.BytesIO(data)).size) == 16 for _, _, data in found.values())


def test_rows_of_one_image_are_its_captions_and_splits_are_optional(tmp_path):
    root = pictures(tmp_path)
    first, second = list(SET)[:2]
    (root / "a.jsonl").write_text(
        "\n".join(
            json.dumps(row)
            for row in ({"image": first, "caption": "one"}, {"image": second, "captions": ["x"]})
        )
        + f'\n{{"image": "./{first}", "caption": "two"}}'
    )
    assert {
        split: {one.key: one.captions for one in found}
        for split, found in read_captions("captions", root / "a.jsonl").items()
    } == {"train": {first.removesuffix(".jpg"): ["one", "two"], second.removesuffix(".jpg"): ["x"]}}
    (root / "a.csv").write_text(f"image,caption\n{first},one\n{second},\n{first},\n{second},x\n")
    found = read_captions("captions", root / "a.csv")["train"]
    assert [one.captions for one in found] == [["one"], ["x"]]


FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "no caption": ({"captions": []}, "image .*COCO_train_1.jpg has no caption"),
    "blank captions": ({"captions": [" ", "\n"]}, "image .*COCO_train_1.jpg has no caption"),
    "no picture": ({"image": "train2014/gone.jpg"}, "image .*train2014/gone.jpg is missing"),
    "outside": (
        {"image": "train2014/../../etc/a.jpg"},
        r"'train2014/../../etc/a.jpg' is not the path of a picture .* below",
    ),
    "absolute": ({"image": "/etc/a.jpg"}, "'/etc/a.jpg' is not the path of a picture"),
    "not a picture": ({"image": "train2014/notes.txt"}, "notes.txt' is not the path of a picture"),
    "another split": (
        {"image": "val2014/COCO_val_4.jpg"},
        r"COCO_val_4.jpg \(val\) was .*COCO_val_4.jpg \(train\)",
    ),
    "an unknown split": ({"split": "dev"}, "split 'dev' is none of train, val, test"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_named_and_nothing_is_written(make, tmp_path, fault):
    change, message = FAULTS[fault]
    listed = entries()
    listed[0] |= change
    with pytest.raises(SampleError, match=message):
        make(listed)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_none_is_named_and_leaves_no_manifest(make, tmp_path):
    (tmp_path / "tree" / "train2014" / "COCO_train_1.jpg").write_bytes(b"oops")
    with pytest.raises(SampleError, match="COCO_train_1.jpg: 4 bytes are not"):
        make(entries())
    assert not list((tmp_path / "out").glob("*.json"))


def test_two_files_of_one_key_are_refused(make, tmp_path):
    (tmp_path / "tree" / "train2014" / "COCO_train_1.png").write_bytes(image())
    with pytest.raises(SampleError, match="COCO_train_1.png .* was .*COCO_train_1.jpg"):
        make([*entries(), {"image": "train2014/COCO_train_1.png", "split": "train", "captions": ["a"]}])


TABLES = {
    "no header.csv": (
        "a.jpg,a man\n",
        "its first line names a.jpg, a man, not the columns image and caption",
    ),
    "empty.csv": ("", "its first line names nothing"),
    "rows.csv": ("image,caption\n", "has no rows"),
    "quote.csv": ('image,caption\na.jpg,"a man\n', "unexpected end of data"),
    "latin.csv": (b"image,caption\na.jpg,caf\xe9\n", "can't decode byte 0xe9"),
    "nameless.csv": ("image,caption\n,a man\n", 'line 2: give "image" and "caption"'),
    "broken.jsonl": ('{"image": "a.jpg", "caption": "x"}\n{"image"\n', "line 2 is not JSON"),
    "deep.jsonl": ("[" * 100_000, "line 1 is not JSON"),
    "list.jsonl": ('["a.jpg", "x"]\n', 'line 1: give "image" and "caption"'),
    "number.jsonl": ('\n{"image": "a.jpg", "captions": [1]}\n', 'line 2: give "image" and "caption"'),
    "text.jsonl": ('{"image": "a.jpg", "captions": "x"}\n', 'line 1: give "image" and "caption"'),
    "empty.jsonl": ("", "has no rows"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_does_not_read_is_named_with_the_line(tmp_path, name):
    text, message = TABLES[name]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SampleError, match=f"{name}.*{message}"):
        read_captions("captions", tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"dataset": "coco"}',
        '{"images": [{"filename": "a.jpg"}]}',
        '{"images": 3}',
        '{"images": [[]]}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_not_karpathys_is_named(tmp_path, text):
    (tmp_path / "dataset_coco.json").write_text(text)
    with pytest.raises(SampleError, match="dataset_coco.json is not in the form of Karpathy's splits"):
        read_captions("coco_captions", tmp_path)


@pytest.mark.parametrize("kind", sorted(CAPTIONS))
def test_another_source_is_refused_with_what_was_looked_for(kind, tmp_path):
    for source in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.csv"):
        with pytest.raises(ConfigError, match=rf"{source} .*; give"):
            read_captions(kind, source)


def captioned(path: Path, captions: dict[str, object]) -> Path:
    members = []
    for key, texts in captions.items():
        members += [(f"{key}.png", image()), (f"{key}.json", json.dumps({"captions": texts}).encode())]
    return write_tar(path, members)


def test_words_are_listed_by_frequency_then_alphabet_and_cover_every_caption(tmp_path, capsys):
    texts = ["A man, a dog", "the man's dog", "A dog: \u00dcber DOG"]
    captioned(tmp_path / "train-0.tar", {"a": texts[:2], "b": texts[2:]})
    captioned(tmp_path / "val-0.tar", {"c": ["unseen"]})
    assert dtem("words", tmp_path) == 0
    said = capsys.readouterr()
    words = ast.literal_eval(said.out)
    assert words == ["dog", "a", ",", ":", "man", "man's", "the", "\u00fcber"]
    assert (
        "3 captions; 8 of 8 words, which are 100.00% of the text" in said.err
        and "context_length=7 cuts none" in said.err
    )
    tokenizer = build_tokenizer({"type": "words", "words": words, "context_length": 7})
    assert not any(3 in tokenizer.encode(text) or tokenizer.is_cut(text) for text in texts)
    assert build_tokenizer({"type": "words", "words": words, "context_length": 6}).is_cut(texts[2])


def test_rare_words_can_be_left_out(tmp_path, capsys):
    captioned(tmp_path / "train-0.tar", {"a": ["a a a b b c"]})
    assert dtem("words", tmp_path, "--min-count", 2) == 0
    said = capsys.readouterr()
    assert said.out.strip() == "['a', 'b']" and "2 of 3 words, which are 83.33%" in said.err


def test_words_of_a_long_list_are_still_one_python_list(tmp_path, capsys):
    captioned(tmp_path / "train-0.tar", {"a": [" ".join(f"w{number}" for number in range(3000))]})
    dtem("words", tmp_path)
    out = capsys.readouterr().out
    assert len(ast.literal_eval(out)) == 3000 and max(map(len, out.splitlines())) <= 140


def test_words_of_a_set_without_captions_are_refused(tmp_path):
    write_tar(tmp_path / "none" / "train-0.tar", [("a.png", image()), ("a.cls", b"0")])
    with pytest.raises(SampleError, match="members cls, png, and so no captions"):
        dtem("words", tmp_path / "none")
    captioned(tmp_path / "bad" / "train-0.tar", {"a": ["x"], "b": []})
    with pytest.raises(SampleError, match="train-0.tar, sample 'b': .*the image has no caption"):
        dtem("words", tmp_path / "bad")
