"""Hostile inputs of tests/helpers/payloads: nothing runs, nothing is written outside, errors are typed."""

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import payloads
import pytest
import torch
from payloads import Payload, Sandbox
from watch import watching

from pipeline.errors import PipelineError

LEAST = 150
"""Payloads that issue 12 asks for."""


@pytest.fixture(scope="module")
def examples(trained, digits, tmp_path_factory):
    """Copies of a run and a set of shards: what a payload changes through a hard link must not be another
    test's."""
    folder = tmp_path_factory.mktemp("examples")
    return shutil.copytree(trained, folder / "run"), shutil.copytree(digits, folder / "shards")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Runs a piece of code in a new sandbox; gives what it raised and what was seen."""
    (tmp_path / "canary_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "precious").write_text("precious")

    def run(payload: Payload, number: int, run: Path, shards: Path) -> list[str]:
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setenv("DTEM_CACHE", str(folder / "cache"))
        sandbox, raised = Sandbox(folder, run, shards), None
        with watching(folder) as watch:
            try:
                payload.run(sandbox)
            except Exception as err:  # noqa: BLE001 - any error is an answer, of which only some are right
                raised = err
        wrong = list(watch.events)
        if payload.refused != isinstance(raised, PipelineError) or (raised and not payload.refused):
            wrong.append(f"{'not refused' if raised is None else repr(raised)[:300]}")
        if sandbox.canary.exists():
            sandbox.canary.unlink()
            wrong.append("the canary was made")
        if sandbox.precious.read_text() != "precious":
            sandbox.precious.write_text("precious")
            wrong.append("a file outside was written to")
        shutil.rmtree(folder)
        return wrong

    return run


def test_no_payload_runs_or_writes_or_ends_in_another_error(place, examples, capsys):
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for number, (kind, payload) in enumerate(payloads.cases()):
        counts[kind] += 1
        wrong += [f"{kind}: {payload.name}: {what}" for what in place(payload, number, *examples)]
    with capsys.disabled():
        print(f"\n{counts.total()} payloads, {len(wrong)} executed, written or untyped: {dict(counts)}")
    assert not wrong, "\n".join(wrong)
    assert counts.total() >= LEAST and counts.keys() == set(payloads.CLASSES)


ACTS = {
    "system": lambda sandbox: os.system("true"),
    "process": lambda sandbox: __import__("subprocess").run(["true"], check=True),
    "connection": lambda sandbox: __import__("socket").create_connection(("127.0.0.1", 9), timeout=1),
    "name": lambda sandbox: __import__("socket").getaddrinfo("localhost", 80),
    "code": lambda sandbox: eval("'canary' and 1"),
    "module": lambda sandbox: __import__("canary_module"),
    "pickle": lambda sandbox: torch.load(_saved(sandbox), weights_only=False),
    "write": lambda sandbox: (sandbox.folder.parent / "x").write_text("x"),
    "write through a link": lambda sandbox: _through_link(sandbox),
    "rename": lambda sandbox: os.rename(_saved(sandbox), sandbox.folder.parent / "y"),
    "remove": lambda sandbox: os.remove(sandbox.folder.parent / "absent"),
    "canary": lambda sandbox: sandbox.canary.touch(),
    "bug": lambda sandbox: {}["absent"],
    "nothing": lambda sandbox: None,
}


def _saved(sandbox: Sandbox) -> Path:
    torch.save({"a": Path("x")}, sandbox.folder / "x.pth")
    return sandbox.folder / "x.pth"


def _through_link(sandbox: Sandbox) -> None:
    (sandbox.folder / "link").symlink_to(sandbox.precious)
    (sandbox.folder / "link").write_text("overwritten")


@pytest.mark.parametrize("name", ACTS)
def test_what_a_payload_could_do_is_seen(place, examples, name):
    assert place(Payload(name, ACTS[name]), 0, *examples)


@pytest.mark.parametrize("act", [lambda s: (s.folder / "x").write_text("x"), lambda s: _saved(s)])
def test_what_is_allowed_is_not_reported(place, examples, act):
    assert not place(Payload("inside", act, refused=False), 0, *examples)
