"""Captions' scores are those of pycocoevalcap, whatever of Java is there."""

import json
import os
import socket
import tarfile
import time

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from shared_data import shared

from tasks.captions import metrics as caption_metrics
from tasks.captions.metrics import BLEU, CaptionRow, caption_scores
from tasks.captions.ptb_words import ptb_words

needs_java = pytest.mark.usefixtures("with_java")

ROWS = [
    CaptionRow(
        "b",
        "A man rides a horse.",
        ["A man on a horse, in a field.", "Someone's riding (fast) on a brown horse"],
    ),
    CaptionRow(
        "a",
        "two dogs isn't a cat ||| here",
        ["Two dogs play with a ball...", "the dogs aren't cats; they play", "a ||| dog"],
    ),
    CaptionRow("d", "", ["a red bus on the street"]),
    CaptionRow("c", "a red, red bus", ["a red bus on the street", "The bus is red - and it's big!"]),
]
HARD = """A man's t-shirt isn't red, and/or blue.
Two dogs (small) play with a "ball" on the street...
The U.S. flag, 1,000 people; 3.5 m tall!
He can't stop: they're gonna go!! What?
It costs $5 or 50% at 10:30 a.m.
a cat & a dog - together -- #1
Mr. Smith's dogs' house in St. Louis, on 5th Ave. and Main St.

café naïve — déjà vu
I cannot sleep; we'll see, I'd go, I've been, I'm here, you'd've
rock 'n' roll 'quoted words' here
a black-and-white photo of the 1970's
a [bracket] and a {brace}
3/4 of a pizza, 7-up 20th 5'10" tall
wanna lemme gimme 'tis 'twas three o'clock ma'am y'all
the dog ,the cat .the end
a t.v. is on no. 5, etc.
he is 6 ft. tall with a 4x4 truck;a cat,, a dog
a sign reading 'no dogs'.
a dog!? really?!""".splitlines()


@pytest.fixture(autouse=True)
def every_reason_is_new():
    caption_metrics._say_once.cache_clear()


@pytest.fixture
def java(tmp_path, monkeypatch):
    """Puts a shell script in Java's place on PATH, or nothing."""

    def install(script: str | None) -> None:
        if script is not None:
            (tmp_path / "java").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "java").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path) if script is None else f"{tmp_path}:{os.environ['PATH']}")

    return install


def by_image(cut) -> tuple[dict, dict]:
    """What pycocoevalcap's scorers are given: references and generated captions."""
    rows = {row.key: row for row in ROWS}
    return cut({key: list(row.references) for key, row in rows.items()}), cut(
        {key: [row.generated] for key, row in rows.items()}
    )


def scored(references, generated) -> dict:
    bleu = dict(zip(BLEU, Bleu(4).compute_score(references, generated, verbose=0)[0], strict=True))
    return bleu | {
        "ROUGE-L": Rouge().compute_score(references, generated)[0],
        "CIDEr": Cider().compute_score(references, generated)[0],
    }


def chosen(scores, names) -> dict:
    return {name: scores[name] for name in names}


@needs_java
def test_scores_are_pycocoevalcaps_own():
    def cut(texts):
        return PTBTokenizer().tokenize(
            {key: [{"caption": text} for text in own] for key, own in texts.items()}
        )

    references, generated = by_image(cut)
    expected = scored(references, generated)
    no_bars = {
        key: [text.replace("|||", " ") for text in own] for key, own in references.items()
    }  # which are its separators
    expected["METEOR"] = Meteor().compute_score(no_bars, generated)[0]
    scores = caption_scores(ROWS, thorough=True)
    assert chosen(scores, expected) == pytest.approx(expected, rel=1e-12) and scores["PTB"] == 1.0
    assert all(0.05 < scores[name] < 1 for name in (*BLEU[:2], "METEOR", "ROUGE-L", "CIDEr"))


def test_without_java_its_metrics_are_not_run_and_said_once(java, caplog, monkeypatch):
    java(None)
    monkeypatch.setattr(socket, "socket", None)  # nobody connects to anything
    cut = {";", ",", "...", ".", "-", "!"}
    expected = scored(
        *by_image(
            lambda texts: {
                k: [" ".join(w for w in ptb_words(t) if w not in cut) for t in v] for k, v in texts.items()
            }
        )
    )
    scores = caption_scores(ROWS, thorough=True)
    assert chosen(scores, expected) == pytest.approx(expected, rel=1e-12)
    not_run = {name for name in scores.keys() - expected.keys() if scores[name] is None}
    assert not_run == {"METEOR", "SPICE", "PTB"} and scores.keys() - expected.keys() - not_run == {"words"}
    assert (
        caption_scores(json.loads(json.dumps(ROWS[::-1])), thorough=True) == scores
    )  # rows that went over the wire, in another order
    quick = {name: value for name, value in scores.items() if name not in ("METEOR", "SPICE")}
    assert caption_scores(ROWS) == quick  # as in training
    record, *others = caplog.records
    assert record.getMessage().startswith(
        "not run: PTB, METEOR, SPICE, as java is not on PATH; without PTB a stand-in"
    )
    assert [other.getMessage().split(",")[0] for other in others] == [
        "not run: PTB"
    ]  # the quick ones' own, once


def test_a_program_that_hangs_does_not_hang_the_evaluation(java, caplog):
    java("exec sleep 100")
    start = time.monotonic()
    scores = caption_scores(ROWS, thorough=True, java_seconds=0.5)
    assert time.monotonic() - start < 30 and scores["METEOR"] is scores["SPICE"] is scores["PTB"] is None
    assert scores["BLEU-1"] > 0 and "PTB, METEOR, as it took more than the 0.5 s" in caplog.text
    assert "lacks stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar" in caplog.text


def test_a_program_that_fails_is_not_run(java, caplog):
    java("echo no heap >&2; exit 1")
    scores = caption_scores(ROWS, thorough=True)
    assert scores["METEOR"] is scores["SPICE"] is scores["PTB"] is None
    assert (
        "PTB, as java failed: no heap" in caplog.text
        and "METEOR, as its program ended without an answer" in caplog.text
    )


def test_spice_is_run_where_its_jars_are(java, monkeypatch):
    """A script in its place answers in its form, from what it was given."""
    java("""[ "$3" = spice-1.0.jar ] || exit 1
    grep -q '"test": "a man rides a horse", "refs": \\["a man on a horse in a field"' $4 || exit 1
    [ "$5" = -out ] && echo '[{"scores": {"All": {"f": 0.25}}}, {"scores": {"All": {"f": 0.75}}}]' > $6""")
    monkeypatch.setattr(caption_metrics, "SPICE_JARS", ("SceneGraphParser-1.0.jar",))
    assert caption_scores(ROWS, thorough=True)["SPICE"] == 0.5


def test_a_caption_that_is_its_reference_has_the_highest_score(java):
    java(None)
    texts = ["a man rides a horse", "two dogs play with a ball", "a red bus on the street"]
    scores = caption_scores([CaptionRow(text, text, [text]) for text in texts])
    assert [scores[name] for name in BLEU] == pytest.approx([1.0] * 4)
    assert scores["ROUGE-L"] == pytest.approx(1.0) and scores["CIDEr"] == pytest.approx(10.0)


@needs_java
def test_the_stand_in_cuts_scenes_as_the_java_tokenizer_does():
    with tarfile.open(shared("data/cifar_scenes/val-00000.tar.gz")) as shard:
        records = [
            shard.extractfile(member).read() for member in shard.getmembers() if member.name.endswith(".json")
        ]
    assert_cut_alike([caption for record in records[:80] for caption in json.loads(record)["captions"]])


@needs_java
def test_the_stand_in_cuts_hard_captions_as_the_java_tokenizer_does():
    assert_cut_alike(HARD)


def assert_cut_alike(texts):
    references = {i: [text] for i, text in enumerate(texts)}
    theirs = caption_metrics._java_words(caption_metrics._Java(100), texts)
    ours = [ptb_words(text) for text in texts]
    rows = [CaptionRow(f"{i:04}", "", own) for i, own in references.items()]
    assert caption_metrics._by_image(rows, flattened(ours)) == caption_metrics._by_image(
        rows, flattened(theirs)
    )


def flattened(words):
    return [cut for own in words for cut in ([], own)]
