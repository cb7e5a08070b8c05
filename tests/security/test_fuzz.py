"""Readers of strangers' data answer a spoiled input with a value or a typed error: they run nothing, write
nothing outside and stay below 1 GiB. A few hundred cases here; `make fuzz` tries as many as one likes."""

import tempfile
from pathlib import Path
from random import Random

import pytest
from fuzz_targets import targets
from fuzzing import QUICK, Target, fault, limited_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = Path(__file__).parent / "cases"
"""Inputs that once were answered otherwise, by target; `make fuzz` adds to them."""
NAMES = sorted(targets(Path(tempfile.mkdtemp(prefix="dtem-fuzz-"))))
SETTINGS = settings(
    max_examples=QUICK,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""The same cases on every machine."""


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("seeds"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_good_input_is_read(known, place, name):
    for data in known[name].seeds:
        known[name].read(data, place)


@pytest.mark.parametrize("name", NAMES)
@given(random=st.randoms(use_true_random=False))
@SETTINGS
def test_a_spoiled_input_is_read_or_refused(known, place, name, random):
    target = known[name]
    with limited_memory():
        assert not fault(target, target.mutate(random, target.seeds), place)


@pytest.mark.parametrize("path", sorted(CASES.rglob("*.bin")), ids=lambda path: path.parent.name)
def test_what_once_failed_holds(known, place, path):
    with limited_memory():
        assert not fault(known[path.parent.name.replace("_", " ")], path.read_bytes(), place)


@pytest.mark.parametrize("name", NAMES)
def test_a_case_is_known_by_its_number(known, name):
    target = known[name]
    assert target.case(0, 5) == target.case(0, 5)
    assert len({target.case(0, number) for number in range(20)}) > 5
    assert target.mutate(Random(1), target.seeds) == target.mutate(Random(1), target.seeds)


@pytest.mark.parametrize("what", ["bug", "memory", "write"])
def test_a_wrong_answer_is_seen(place, what):
    def read(data: bytes, folder: Path) -> object:
        if what == "bug":
            return {}[data]
        return (folder.parent / "x").write_bytes(data) if what == "write" else bytearray(2 << 30)

    with limited_memory():
        assert fault(Target("x", [b"a"], read), b"a", place)
