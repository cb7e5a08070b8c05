"""The counts in SECURITY.md are those of the tests."""

import re
from pathlib import Path

import payloads
import pytest
from bombs import bombs
from fuzz_targets import targets
from fuzzing import QUICK

TEXT = " ".join((Path(__file__).parents[2] / "SECURITY.md").read_text().split())


@pytest.mark.parametrize("what", ["payloads", "bombs", "fuzzing"])
def test_a_count_of_the_page_is_that_of_the_tests(what, tmp_path):
    told = {
        "payloads": f"{len(list(payloads.cases())):,} hostile inputs in {len(payloads.CLASSES)} classes",
        "bombs": f"{len(list(bombs()))} bombs",
        "fuzzing": f"{QUICK} spoiled inputs for each of {len(targets(tmp_path))} readers",
    }
    assert re.search(rf"\* {re.escape(told[what])}", TEXT), told[what]
