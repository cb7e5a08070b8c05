"""Scores of captions by the COCO tools (pycocoevalcap, which only this file imports).

Two of the scores and the tokenizer are Java programs. A score whose program cannot run is None, and the
reason is logged once; nothing is ever downloaded.
"""

import json
import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any, NamedTuple, TypeVar

from pipeline.extras import extra
from pipeline.interfaces import Scores
from tasks.captions.ptb_words import ptb_words

with extra("captioning"):
    from pycocoevalcap import spice
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer import ptbtokenizer

log = logging.getLogger(__name__)
T = TypeVar("T")
Texts = dict[int, list[str]]
"""Image -> its texts, with words separated by spaces: the input of pycocoevalcap's scorers."""

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
JAVA_SECONDS = 480.0
"""Time limit of all Java programs, less than the ten minutes that other ranks wait for rank 0."""
SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class CaptionRow(NamedTuple):
    """One image of an evaluation, in a form that JSON can hold."""

    key: str
    generated: str
    references: Sequence[str]
    """Reference captions, at least one."""


class _NotRunError(Exception):
    """A program cannot run, or gave no answer; the message is the reason."""


def caption_scores(
    rows: Sequence[Sequence[Any]], *, thorough: bool = False, java_seconds: float = JAVA_SECONDS
) -> Scores:
    """BLEU-1 to BLEU-4, ROUGE-L, CIDEr, the mean number of words in a generated caption, and PTB: 1 where the
    COCO tools' own tokenizer split the words, None where a stand-in did.

    rows: CaptionRows, or the same read from JSON, in any order. thorough: also METEOR and SPICE, which take
    from seconds to minutes. java_seconds: time limit of all Java programs together. CIDEr is that of the COCO
    tools; its paper (Vedantam et al., 2015) calls it CIDEr-D.
    """
    rows = sorted(CaptionRow(*row) for row in rows)
    java, reasons = _Java(java_seconds), dict[str, list[str]]()

    def attempt(name: str, function: Callable[[], T]) -> T | None:
        try:
            return function()
        except _NotRunError as err:
            reasons.setdefault(str(err), []).append(name)
            return None

    texts = [" ".join(text.split()) for row in rows for text in (row.generated, *row.references)]
    words = attempt("PTB", lambda: _java_words(java, texts))
    generated, references = _by_image(rows, words or [ptb_words(text) for text in texts])
    scores: Scores = dict(zip(BLEU, Bleu(4).compute_score(references, generated, verbose=0)[0], strict=True))
    scores["ROUGE-L"] = float(Rouge().compute_score(references, generated)[0])
    scores["CIDEr"] = float(Cider().compute_score(references, generated)[0])
    scores["words"] = fmean(len(row.generated.split()) for row in rows)
    if thorough:
        scores["METEOR"] = attempt("METEOR", lambda: _meteor(java, references, generated))
        scores["SPICE"] = attempt("SPICE", lambda: _spice(java, references, generated))
    for reason, names in reasons.items():
        _say_once(", ".join(names), reason)
    return scores | {"PTB": None if words is None else 1.0}


@cache
def _say_once(names: str, reason: str) -> None:
    stand_in = (
        "; without PTB a stand-in cuts the words, nearly always in the same way" if "PTB" in names else ""
    )
    log.warning("not run: %s, as %s%s", names, reason, stand_in)


def _by_image(rows: Sequence[CaptionRow], words: Sequence[Sequence[str]]) -> tuple[Texts, Texts]:
    """Generated captions and references without punctuation. words: those of each row's captions, the
    generated one first."""
    pieces = iter(" ".join(word for word in cut if word not in ptbtokenizer.PUNCTUATIONS) for cut in words)
    generated: Texts = {}
    references: Texts = {}
    for i, row in enumerate(rows):
        generated[i] = [next(pieces)]
        references[i] = [next(pieces) for _ in row.references]
    return generated, references


class _Java:
    """Runs Java programs, which share a time limit in seconds."""

    def __init__(self, seconds: float):
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def time_left(self) -> float:
        """Seconds that are left. Raises _NotRunError without Java."""
        if shutil.which("java") is None:
            raise _NotRunError("java is not on PATH")
        return max(self._end - time.monotonic(), 0.0)

    def late(self) -> _NotRunError:
        return _NotRunError(f"it took more than the {self._seconds:g} s that Java has in an evaluation")

    def run(self, *arguments: str, content: bytes = b"", folder: Path | None = None) -> bytes:
        """Output of the program, with the content as its input. Raises _NotRunError."""
        left = self.time_left()
        try:
            return subprocess.run(
                ["java", *arguments], input=content, cwd=folder, capture_output=True, timeout=left, check=True
            ).stdout
        except subprocess.TimeoutExpired as err:
            raise self.late() from err
        except subprocess.CalledProcessError as err:
            raise _NotRunError(f"java failed: {err.stderr.decode(errors='replace').strip()[:200]}") from err


def _java_words(java: _Java, texts: Sequence[str]) -> list[list[str]]:
    """Words of texts, which are single lines, by Stanford's PTBTokenizer. pycocoevalcap's own wrapper has no
    time limit, and writes into its own folder."""
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    program = (
        "-Dfile.encoding=UTF-8",
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    )
    lines = (
        java.run(*program, content="".join(text + "\n" for text in texts).encode()).decode().split("\n")[:-1]
    )
    if len(lines) != len(texts):
        raise _NotRunError(f"the tokenizer made {len(lines)} lines of {len(texts)}")
    return [line.split() for line in lines]


def _meteor(java: _Java, references: Texts, generated: Texts) -> float:
    left = java.time_left()
    scorer = Meteor()
    process: Any = scorer.meteor_p
    watchdog = Timer(left, process.kill)
    watchdog.start()
    try:
        return scorer.compute_score(_without_bars(references), _without_bars(generated))[0]
    # an empty answer, or a broken pipe
    except (ValueError, OSError) as err:
        raise (
            _NotRunError("its program ended without an answer") if java.time_left() else java.late()
        ) from err
    finally:
        watchdog.cancel()
        # its destructor would wait for the lock
        if scorer.lock.locked():
            scorer.lock.release()
        with suppress(OSError):
            process.stdin.close()


def _without_bars(texts: Texts) -> Texts:
    """Texts without the bars that separate captions in METEOR's input."""
    return {i: [text.replace("|||", " ") for text in own] for i, own in texts.items()}


def _spice(java: _Java, references: Texts, generated: Texts) -> float:
    java.time_left()
    folder = Path(spice.__path__[0])
    if lacking := [jar for jar in SPICE_JARS if not (folder / "lib" / jar).is_file()]:
        raise _NotRunError(
            f"{folder / 'lib'} lacks {' and '.join(lacking)}, which Stanford CoreNLP 3.6.0 has"
        )
    with TemporaryDirectory() as place:
        given, answer = Path(place, "captions.json"), Path(place, "scores.json")
        given.write_text(
            json.dumps([{"image_id": i, "test": generated[i][0], "refs": references[i]} for i in references])
        )
        java.run(
            "-Xmx8G",
            "-jar",
            "spice-1.0.jar",
            str(given),
            "-out",
            str(answer),
            "-subset",
            "-silent",
            folder=folder,
        )
        return fmean(float(image["scores"]["All"]["f"]) for image in json.loads(answer.read_text()))
