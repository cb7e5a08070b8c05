"""The figures in sentences of the pages are those of the records. The table has a test of its own."""

from statistics import mean

import pytest
from results_table import ROOT, named, results_of

FIGURES = [
    (
        "benchmarks/README.md",
        "inference of 16 images: {:.2f} times the images/s of the authors' release",
        "inference_cpu",
        [("ours_dtem vs release", "ratio")],
    ),
    (
        "benchmarks/README.md",
        "modular training step: {:.2f} of the release's seconds, {:.2f} of the memory that its step adds",
        "training_step_cpu",
        [
            ("seconds of a step, dtem default", "ratio"),
            ("MiB added at the peak of a step, dtem default", "ratio"),
        ],
    ),
    (
        "benchmarks/README.md",
        "KV cache: {:.1f} times the captions/s (pooler), {:.1f} times (direct)",
        "beam_search_cpu",
        [("captions/s, route pooler", "ratio"), ("captions/s, route direct", "ratio")],
    ),
    (
        "docs/multitask.md",
        "costs {:.2f} times what three steps with one task cost",
        "multitask_step_cpu",
        [("seconds of a step: together", "ratio")],
    ),
    (
        "docs/multitask.md",
        "top-1 {:.1f} against {:.1f}",
        "digits_multitask",
        [("digits:", "together"), ("digits:", "alone")],
    ),
    (
        "docs/multitask.md",
        "CIDEr {:.2f} against {:.2f}",
        "digits_multitask",
        [("digits_captioning:", "together", 0.01), ("digits_captioning:", "alone", 0.01)],
    ),
    (
        "docs/multitask.md",
        "mIoU {:.1f} against {:.1f}",
        "digits_multitask",
        [("digits_segmentation:", "together"), ("digits_segmentation:", "alone")],
    ),
    (
        "docs/unmerge.md",
        "`copy` {:.2f}, `residual` {:.2f}; with 70 % merged {:.2f} and {:.2f}",
        "camvid_unmerge",
        [
            ("grid by copy, 50%", "dtem"),
            ("grid by residual, 50%", "dtem"),
            ("grid by copy, 70%", "dtem"),
            ("grid by residual, 70%", "dtem"),
        ],
    ),
    (
        "docs/unmerge.md",
        "reaches {:.2f} and {:.2f}; through copies it reaches {:.2f} and {:.2f}",
        "camvid_unmerge",
        [
            ("embedding trained by relaxed merges, grid by soft, 50%", "dtem"),
            ("embedding trained by relaxed merges, grid by soft, 70%", "dtem"),
            ("embedding trained by relaxed merges, grid by copy, 50%", "dtem"),
            ("embedding trained by relaxed merges, grid by copy, 70%", "dtem"),
        ],
    ),
]


SETTING = ("2 threads", "release", "batch 16,", "batch 8,")
"""Which of several timings a sentence tells."""


def figure(record: str, start: str, what: str, unit: float = 1) -> float:
    """The mean over the seeds of a policy, or the median of a ratio, of the result whose name starts so."""
    if what == "ratio":
        result = named(record, start, SETTING)
    else:
        found = [one for one in results_of(record) if one["name"].startswith(start)]
        result = min(found, key=lambda one: len(one["name"]))
    return unit * (result["ratio"]["median"] if what == "ratio" else mean(result["scores"][what]))


@pytest.mark.parametrize(("page", "sentence", "record", "figures"), FIGURES)
def test_a_page_says_what_the_record_says(page, sentence, record, figures):
    said = sentence.format(*(figure(record, *one) for one in figures))
    assert said in " ".join((ROOT / page).read_text().split())
