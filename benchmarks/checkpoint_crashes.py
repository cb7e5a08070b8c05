"""Kills processes while they save, and lets the disk fail at every moment of a save: is there always a
checkpoint that loads?

    python benchmarks/checkpoint_crashes.py --kills 300

Kills: 1, 2 and 4 ranks over gloo, DeepSpeed's ZeRO 2 with several, save one checkpoint after the other.
SIGKILL ends one of them, or all, at a random instant of a save; it is counted where a file was being written.
All numbers of a checkpoint are its step, so that one which was put together of two is seen. Disk: a preloaded
library (failing_disk.c) lets each call of a save that changes the disk fail in turn.
"""

import argparse
import ctypes
import errno
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests/helpers")]
import torch  # noqa: E402
from record import add_entry  # noqa: E402
from standin import StandinModel, standin_config  # noqa: E402

from pipeline.engine import build_engine  # noqa: E402
from pipeline.engine.optimizers import GroupAdamW  # noqa: E402
from pipeline.errors import CheckpointError  # noqa: E402
from pipeline.interfaces import Progress  # noqa: E402
from pipeline.parts import set_trainable  # noqa: E402
from pipeline.ranks import Processes  # noqa: E402
from pipeline.run_folder import complete_folders  # noqa: E402
from pipeline.train import checkpoint  # noqa: E402
from pipeline.train.groups import parameter_groups  # noqa: E402
from pipeline.train.saving import Saver  # noqa: E402

PADDING = 4_000_000
"""Numbers beside the stand-in's own, so that a save takes a while: a file of 16 MB."""
WAIT = 600.0
"""Seconds after which a run that has not saved is a failure of its own."""


def saving_without_end(root: Path, rank: int, world_size: int, port: int, begun: Any, told: Any) -> None:
    """A rank that saves steps 1, 2, ... for ever. begun: step of the last save that was started; told: of
    the last one that was said to be complete."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    engine = build(world_size)
    step = storage_step(root)
    facts = facts_of(world_size)
    with Saver(engine, root, 2) as saver:
        while True:
            step += 1
            state = {name: torch.full_like(tensor, step) for name, tensor in shared_state(engine).items()}
            engine.load_state_tensors(state)
            average = {"ema.padding": torch.full((PADDING,), float(step))} if rank == 0 else {}
            saver.start(engine, Progress(step=step), average, facts)
            begun.value = step
            if saver.settle(wait=True) is not None:
                told.value = step


def build(world_size: int):
    kind = dict(type="deepspeed", zero_stage=2, precision="fp32") if world_size > 1 else dict(type="local")
    config = standin_config(engine=kind)
    model = StandinModel()
    set_trainable(model, config.train.mode)
    return build_engine(config, model, parameter_groups(model, config))


def shared_state(engine) -> dict[str, torch.Tensor]:
    """The state's tensors, on every rank."""
    names = dict(engine.module.state_dict())
    trained = {name: each for name, each in engine.module.named_parameters() if each.requires_grad}
    state = {f"model.{name}": tensor.detach() for name, tensor in names.items()}
    for key in GroupAdamW.moments:
        state |= {f"{key}.{name}": each.detach() for name, each in trained.items()}
    return state | {f"step.{name}": torch.zeros(()) for name in trained}


def facts_of(world_size: int) -> dict[str, Any]:
    return checkpoint.run_facts(standin_config(), world_size) | {"global_batch": {"a": 8}, "streams": {}}


def storage_step(root: Path) -> int:
    found = checkpoint.load_latest(Processes(torch.device("cpu")), root)
    return 0 if found is None else found.facts["step"]


def until(happened: Callable[[], bool]) -> bool:
    """Whether it happened in time."""
    end = time.monotonic() + WAIT
    while not happened() and time.monotonic() < end:
        time.sleep(0.001)
    return happened()


def kill_once(root: Path, world_size: int, draw: random.Random) -> dict[str, int]:
    """One run that is killed as it saves; what is found behind it."""
    fork = multiprocessing.get_context("fork")
    begun, told = fork.Value("q", 0), fork.Value("q", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (world_size, port, begun, told)
    ranks = [fork.Process(target=saving_without_end, args=(root, n, *arguments)) for n in range(world_size)]
    for process in ranks:
        process.start()
    saved = until(lambda: told.value > 0)
    # a save to learn how long one takes, and one to strike
    until(lambda: begun.value > told.value)
    begin, first = time.monotonic(), begun.value
    until(lambda: told.value >= first)
    lasting = time.monotonic() - begin
    until(lambda: begun.value > first)
    time.sleep(draw.uniform(0.0, lasting))
    known = told.value
    for process in ranks if draw.random() < 0.3 else [draw.choice(ranks)]:
        process.kill()
    at_kill, writing = begun.value, bool(list(root.glob(".partial-*")))
    # the others may go on, until they miss the one that is gone
    time.sleep(draw.uniform(0.0, 0.1))
    for process in ranks:
        process.kill()
    for process in ranks:
        process.join()
    newest = next((int(found.name[5:]) for found in complete_folders(root)), 0)
    try:
        loaded = checkpoint.load_latest(Processes(torch.device("cpu")), root)
    except CheckpointError as err:
        print(f"not loaded: {err}", flush=True)
        loaded = None
    step = loaded.facts["step"] if loaded else -1
    whole = loaded is not None and all(bool((tensor == step).all()) for tensor in loaded.tensors.values())
    return {
        "kills": int(writing),
        "kills_between_saves": int(not writing),
        "runs_that_never_saved": int(not saved),
        "kills_without_a_whole_checkpoint": int(not whole),
        "completed_saves_that_were_lost": int(step < max(known, newest)),
        "most_saves_that_were_begun_and_lost": max(0, at_kill - step),
    }


def added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {
        name: max(one.get(name, 0), n) if name.startswith("most") else one.get(name, 0) + n
        for name, n in other.items()
    }


def kills(number: int, world_size: int, seed: int) -> dict[str, int]:
    draw, counts = random.Random(f"{seed} {world_size}"), dict[str, int]()
    with tempfile.TemporaryDirectory() as folder:
        while counts.get("kills", 0) < number:
            counts = added(counts, kill_once(Path(folder) / "checkpoints", world_size, draw))
            print(f"  {world_size} ranks: {counts}", flush=True)
    return counts


def disk_failures() -> dict[str, int]:
    """Run in a process with the preloaded library: each call of a save fails once, with each error."""
    library = ctypes.CDLL(None)
    library.calls_seen.restype = ctypes.c_long
    kinds = ("failures", "complete_all_the_same", "without_a_whole_checkpoint", "wrong_about_being_complete")
    counts = dict.fromkeys(kinds, 0)
    engine = build(1)
    for code in (errno.ENOSPC, errno.EIO):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder).resolve() / "checkpoints"
            save(engine, root, 1)
            step, number = 1, 0
            while True:
                library.fail_at(str(root).encode(), ctypes.c_long(number), code)
                complete = save(engine, root, step + 1)
                seen = library.calls_seen()
                library.fail_at(b"", ctypes.c_long(-1), 0)
                if seen <= number:
                    break
                found = storage_step(root)
                counts["failures"] += 1
                counts["complete_all_the_same"] += int(complete)
                counts["without_a_whole_checkpoint"] += int(found not in (step, step + 1))
                counts["wrong_about_being_complete"] += int(complete and found == step)
                step, number = found, number + 1
    return counts


def save(engine, root: Path, step: int) -> bool:
    """Whether the save was said to be complete."""
    try:
        with Saver(engine, root, 2) as saver:
            saver.start(engine, Progress(step=step), {}, facts_of(1))
            return saver.settle(wait=True) is not None
    except CheckpointError:
        return False


def disk_failures_apart() -> dict[str, int]:
    """`disk_failures` in a process of its own, into which the library is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "failing_disk.so"
        source = Path(__file__).with_name("failing_disk.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        done = subprocess.run(
            [sys.executable, __file__, "--disk-only"],
            env=os.environ | {"LD_PRELOAD": str(library)},
            capture_output=True,
            text=True,
            check=True,
        )
    return {name: int(n) for name, n in (line.split() for line in done.stdout.splitlines()[-4:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="in all; a third on 1, on 2 and on 4 ranks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", default=str(ROOT / "benchmarks/records/reliability.json"))
    parser.add_argument("--disk-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if args.disk_only:
        for name, count in disk_failures().items():
            print(name, count)
        return
    from pipeline.engine import zero  # noqa: F401 - imported once, before the processes are forked

    found = [
        {"name": f"SIGKILL of {ranks} ranks", "counts": kills(args.kills // 3, ranks, args.seed)}
        for ranks in (1, 2, 4)
    ]
    found.append({"name": "ENOSPC and EIO at each call of a save", "counts": disk_failures_apart()})
    add_entry(
        args.record,
        "A checkpoint that loads is there after SIGKILL at any instant and any failure of the disk",
        found,
        seeds=[args.seed],
    )


if __name__ == "__main__":
    main()
