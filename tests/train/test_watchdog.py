"""A rank that does not come forward says where it is, and ends with all that it started. Processes of their
own."""

import re
import sys
import time
from contextlib import suppress

import forks
import psutil
import pytest
from deepspeed_launch import environment
from forks import Fork

from pipeline.train import notes as notes_module
from pipeline.train.notes import SharedNotes
from pipeline.train.watchdog import HUNG, Watchdog

GENEROUS = 120
HANGS = """
import subprocess, sys, threading, time
from pathlib import Path
from pipeline.train.notes import SharedNotes
from pipeline.train.watchdog import Section, Watchdog

def stuck_in_this_function():
    time.sleep(600)

with Watchdog(Path(sys.argv[1]), 3, 8, SharedNotes()) as watchdog:
    watchdog.note_batch("digits", ("a b", "c\\n"))
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, flush=True)
    watchdog.at(Section("computes step 7", 1.0))
    threading.Thread(target=stuck_in_this_function, daemon=True).start()
    stuck_in_this_function()
"""
WAITS = """
import sys, time
from pathlib import Path
from pipeline.train import watchdog as module
from pipeline.train.notes import SharedNotes
from pipeline.train.watchdog import Section, Watchdog

module.READ_EVERY, module.FRESH = 0.1, 2.0
notes = SharedNotes()
with Watchdog(Path(sys.argv[1]), 0, 2, notes) as watchdog:
    watchdog.at(Section("waits for the other ranks", 1.0, patient=True))
    for _ in range(25):
        notes.write_slow("rank 1 saves a checkpoint")
        time.sleep(0.2)
    print("excused", flush=True)
    time.sleep(600)
"""


def ended(script: str, folder, *words: str) -> tuple[int, str, str]:
    done = forks.run("-c", script, str(folder), *words, env=environment(), timeout=GENEROUS)
    return done.returncode, done.stdout, done.stderr


def wait_until_gone(pid: int) -> None:
    """Returns once the process is no more, or a zombie: a kill takes effect after it was sent. The test's own
    timeout is the limit."""
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)


def test_a_rank_that_hangs_says_where_and_is_gone_with_its_children(tmp_path):
    code, child, said = ended(HANGS, tmp_path)
    kept = (tmp_path / "hangs/rank_00003.txt").read_text()
    assert code == HUNG
    for text in (said, kept):
        assert re.search(r"rank 3 of 8: no progress for \d+ s, while it computes step 7; it is ended", text)
        assert r"last batch: digits: 'a b', 'c\n'" in text
        assert text.count("in stuck_in_this_function") == 2, "the stacks of both threads"
    wait_until_gone(int(child))


def test_a_rank_that_another_one_makes_wait_ends_when_that_is_silent(tmp_path):
    code, out, said = ended(WAITS, tmp_path)
    assert (code, out) == (HUNG, "excused\n"), said
    assert "while it waits for the other ranks" in said


UNHEARD = """
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path
from pipeline.train import watchdog as module
from pipeline.train.notes import SharedNotes
from pipeline.train.watchdog import Section, Watchdog

folder, what, notes = Path(sys.argv[1]), sys.argv[2], SharedNotes()
if what == "nobody reads stderr":
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write), os.close(read)
if what == "stderr is full":
    read, write = os.pipe()
    os.dup2(write, 2)
    os.set_blocking(write, False)
    try:
        while os.write(write, bytes(4096)): pass
    except BlockingIOError:
        os.set_blocking(write, True)
if what == "the disk does not answer":
    (folder / "hangs").mkdir()
    os.mkfifo(folder / "hangs/rank_00001.txt")
if what == "hangs is a link":
    (folder / "hangs").symlink_to("/tmp")
if what == "rank 0 is stopped":
    from torch.distributed import TCPStore
    store = (
        "import time; from torch.distributed import TCPStore\\n"
        "store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\\n"
        "print(store.port, flush=True)\\n"
        "time.sleep(600)"
    )
    rank_0 = subprocess.Popen([sys.executable, "-c", store], stdout=subprocess.PIPE)
    port = int(rank_0.stdout.readline())
    notes = SharedNotes(TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False))
    rank_0.send_signal(signal.SIGSTOP)
module.WRITES_WITHIN = module.HOLDS_ON = 1.0
with Watchdog(folder, 1, 2, notes) as watchdog:
    watchdog.at(Section("waits for the other ranks", 2.0, patient=True))
    if what == "no thread of Python runs":
        time.sleep(1.0)
        ctypes.PyDLL(None).sleep(600)
    assert not notes.stop_asked()
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("nobody reads stderr", HUNG),
        ("stderr is full", HUNG),
        ("the disk does not answer", HUNG),
        ("hangs is a link", HUNG),
        ("rank 0 is stopped", HUNG),
        ("no thread of Python runs", 1),
    ],
)
def test_nothing_keeps_a_hung_rank_alive(what, status, tmp_path):
    code, _, said = ended(UNHEARD, tmp_path, what)
    assert code == status, said
    told = (tmp_path / "hangs/rank_00001.txt").read_text() if "stderr" in what else said
    assert "most recent call first" in told


def test_with_the_watchdog_the_thread_of_the_notes_ends(tmp_path):
    """A thread that is in the store at the end of the interpreter aborts a process whose run is done."""
    notes = SharedNotes(Broken())
    with Watchdog(tmp_path, 0, 2, notes):
        notes.ask_to_stop()
        assert notes._thread.is_alive()
    assert not notes._thread.is_alive()


class Broken:
    """A store that fails for a moment."""

    def __init__(self):
        self.notes, self.failures = {}, 1

    def set_timeout(self, limit): ...

    def set(self, key, text):
        if self.failures:
            self.failures -= 1
            raise RuntimeError("Connection reset")
        self.notes[key] = text.encode()

    def check(self, keys):
        return all(key in self.notes for key in keys)

    def get(self, key):
        return self.notes[key]


def test_a_store_that_fails_for_a_moment_gets_and_gives_the_notes_later(monkeypatch):
    monkeypatch.setattr(notes_module, "ASK_EVERY", 0.01)
    notes = SharedNotes(Broken())
    notes.ask_to_stop()
    until = time.monotonic() + GENEROUS
    while not notes.stop_asked():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert notes.slow() == ""


CHILD = """
import os, sys, time
from pipeline.processes import end_with_parent
if pid := os.fork():
    print(pid, flush=True)
    time.sleep(600)
end_with_parent()
open(sys.argv[1], "w").close()
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_child_ends_with_its_killed_parent(tmp_path):
    ready = tmp_path / "ready"
    parent = Fork("-c", CHILD, str(ready), env=environment())
    parent.until("\n")
    child = psutil.Process(int(parent.out))
    deadline = time.monotonic() + GENEROUS
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs([child], timeout=GENEROUS)[1]
