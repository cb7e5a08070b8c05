"""`dtem shards corrupt-labels`: what it writes is read again with tarfile, and compared with the set that it
was made of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from shardkit import dtem, read, samples, write_tar

from pipeline.data.make.noisy_labels import check_noise, noisy_label
from pipeline.data.shards.columns import from_columns, to_columns
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.label_noise import LabelNoise
from pipeline.errors import ConfigError

ONE = "--workers", 1
NAMES = ["cat", "dog", "emu"]
SYMMETRIC = LabelNoise("symmetric", 0.4, 3)
NEXT = LabelNoise("asymmetric", 0.4, 3)
CATS = LabelNoise("asymmetric", 0.4, 3, (("cat", "emu"),))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, count in {"train-0": 30, "train-1": 20, "val-0": 10}.items():
        write_tar(folder / f"{name}.tar", samples(name, count))
    (folder / "classes.json").write_text(json.dumps(NAMES))
    dtem("make", "index", folder, *ONE)
    return folder


def corrupted(source: Path, out: Path, noise: LabelNoise, *more: object) -> dict[str, dict[str, bytes]]:
    options = "--noise", noise.kind, "--rate", noise.rate, "--seed", noise.seed
    assert dtem("corrupt-labels", source, out, *options, *more) == 0
    return read(out)


@pytest.mark.parametrize(
    "noise", [SYMMETRIC, NEXT, CATS], ids=lambda noise: f"{noise.kind}{len(noise.flips)}"
)
def test_the_share_of_wrong_labels_is_the_rate_and_they_are_drawn_from_the_right_classes(noise):
    keys = [f"{number:05d}" for number in range(4000)]
    share: dict[int, list[float]] = {}
    for true in range(3):
        given = [noisy_label(noise, key, true, NAMES) for key in keys]
        share[true] = [given.count(label) / len(keys) for label in range(3)]
    first = [noisy_label(noise, key, 0, NAMES) for key in keys[:50]]
    assert first == [noisy_label(noise, key, 0, NAMES) for key in keys[:50]]
    assert first != [noisy_label(replace(noise, seed=4), key, 0, NAMES) for key in keys[:50]]
    near = pytest.approx
    if noise == SYMMETRIC:
        for true, own in share.items():
            assert own == [near(0.6 if label == true else 0.2, abs=0.03) for label in range(3)]
    elif noise == NEXT:
        for true, own in share.items():
            expected = {true: 0.6, (true + 1) % 3: 0.4}
            assert own == [near(expected.get(label, 0), abs=0.03) for label in range(3)]
    else:
        assert share[0] == [near(0.6, abs=0.03), 0, near(0.4, abs=0.03)]
        assert share[1] == [0, 1, 0] and share[2] == [0, 0, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_training_samples_get_noise_and_keep_their_true_label_apart(photos, tmp_path, capsys, workers):
    more = "--workers", workers, "--shard-size", 7 * workers
    found, given = corrupted(photos, tmp_path / "out", SYMMETRIC, *more), read(photos)
    assert found.keys() == given.keys()
    for key, members in given.items():
        split, _, name = key.partition(":")
        true = int(members["cls"])
        label = noisy_label(SYMMETRIC, name, true, NAMES) if split == "train" else true
        assert found[key] == members | {"cls": str(label).encode(), "true.cls": members["cls"]}
    wrong = sum(members["cls"] != members["true.cls"] for members in found.values())
    assert 10 < wrong < 30 and f"{wrong} labels are wrong now" in capsys.readouterr().out
    assert load_manifest(str(tmp_path / "out")).label_noise == (SYMMETRIC,)
    assert dtem("verify", tmp_path / "out", *ONE) == 0
    dtem("info", tmp_path / "out", "--json")
    lines = capsys.readouterr().out
    facts = json.loads(lines[lines.index("{") :])
    assert facts["wrong_labels"] == {"train": wrong, "val": 0}
    assert facts["label_noise"] == [SYMMETRIC.to_plain() | {"flips": []}]


def test_the_note_and_the_true_labels_stay_as_the_set_is_changed_and_go_with_new_labels(
    photos, tmp_path, capsys
):
    flips = tmp_path / "flips.json"
    flips.write_text('{"cat": "emu"}')
    noisy, other = tmp_path / "noisy", tmp_path / "other"
    found = corrupted(photos, noisy, CATS, "--flips", flips, *ONE)
    assert {own["cls"] for own in found.values() if own["true.cls"] == b"0"} == {b"0", b"2"}
    assert all(own["cls"] == own["true.cls"] for own in found.values() if own["true.cls"] != b"0")
    write_tar(other / "train-0.tar", samples("x", 3))
    (other / "classes.json").write_text('["emu", "dog", "cat"]')
    dtem("make", "index", other, *ONE)
    second = tmp_path / "second"
    true = corrupted(other, second, NEXT, *ONE)
    dtem("merge", noisy, second, tmp_path / "merged", *ONE)
    merged = load_manifest(str(tmp_path / "merged"))
    assert merged.label_noise == (CATS, NEXT) and merged.classes == ("cat", "dog", "emu")
    turned = {b"0": b"2", b"1": b"1", b"2": b"0"}
    for key, members in read(tmp_path / "merged").items():
        own = found.get(key) or {
            name: turned.get(data, data) if name.endswith("cls") else data for name, data in true[key].items()
        }
        assert members == own
    dtem("split", noisy, tmp_path / "split", "--name", "test", "--held-out", 0.3, *ONE)
    dtem("repair", noisy, tmp_path / "repaired", *ONE)
    for name in ("split", "repaired"):
        manifest = load_manifest(str(tmp_path / name))
        assert manifest.label_noise == (CATS,) and "true.cls" in manifest.schema
        assert from_columns(to_columns(manifest)).label_noise == (CATS,)
    joined = load_manifest([str(noisy), str(tmp_path / "repaired" / "val-00000.tar")])
    assert joined.label_noise == (CATS,)
    table = tmp_path / "table.csv"
    rows = [f"{key.partition(':')[2]},{own['cls'].decode()}" for key, own in found.items()]
    table.write_text("\n".join(["key,label", *rows]))
    dtem("label", noisy, table, tmp_path / "labelled", *ONE)
    labelled = load_manifest(str(tmp_path / "labelled"))
    assert not labelled.label_noise and labelled.schema == ("cls", "png")


def test_a_clean_set_has_the_digest_that_it_had_and_each_noise_one_of_its_own(photos):
    clean = load_manifest(str(photos))
    noises = [(), (SYMMETRIC,), (NEXT,), (replace(NEXT, seed=4),), (CATS,)]
    assert len({replace(clean, label_noise=noise).digest for noise in noises}) == len(noises)
    assert b"label_noise" not in clean.to_json(None)


REFUSED = {
    "more than K classes allow": (LabelNoise("symmetric", 0.67, 0), "below 0.6667"),
    "half of a class": (LabelNoise("asymmetric", 0.5, 0), "below 0.5"),
    "a class that is none": (
        LabelNoise("asymmetric", 0.4, 0, (("cat", "yak"),)),
        "'yak', and there are",
    ),
    "itself": (LabelNoise("asymmetric", 0.4, 0, (("cat", "cat"),)), "become itself"),
    "flips of any class": (LabelNoise("symmetric", 0.4, 0, (("cat", "dog"),)), "with asymmetric noise"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_noise_beyond_the_classes_is_refused(why):
    noise, message = REFUSED[why]
    with pytest.raises(ConfigError, match=message):
        check_noise(noise, NAMES)


def test_what_has_no_class_or_is_noisy_already_is_refused_before_anything_is_written(photos, tmp_path):
    options = "--noise", "symmetric", "--rate", 0.4, *ONE
    captions = tmp_path / "captions"
    write_tar(captions / "train-0.tar", [("a.png", b""), ("a.txt", b"a cat")])
    dtem("make", "index", captions, *ONE)
    corrupted(photos, tmp_path / "noisy", SYMMETRIC, *ONE)
    val = f"{photos}/val-0.tar"
    for source, message in {
        captions: "no samples with one class each",
        tmp_path / "noisy": "noisy already; give the set",
        val: "no samples to train on; its splits are val",
    }.items():
        with pytest.raises(ConfigError, match=message):
            dtem("corrupt-labels", source, tmp_path / "out", *options)
    with pytest.raises(ConfigError, match="below 0.6667"):
        dtem("corrupt-labels", photos, tmp_path / "out", "--noise", "symmetric", "--rate", 0.7, *ONE)
    flips = tmp_path / "flips.json"
    for text in ("[", "[]", "{}", '{"cat": 1}'):
        flips.write_text(text)
        with pytest.raises(ConfigError, match="flips.json"):
            dtem("corrupt-labels", photos, tmp_path / "out", "--flips", flips, *options)
    assert not (tmp_path / "out").exists()
