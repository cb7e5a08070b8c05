"""Starts scripts on this machine's CPU: by DeepSpeed's own launcher, as a user would, or the ranks alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from forks import GENEROUS, Fork
from torch import Tensor

ROOT = Path(__file__).parents[2]
SHIM = "from deepspeed.launcher.runner import main; main()"


def command(script: Path, *args: str, processes: int) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        sys.executable,
        "-c",
        SHIM,
        "--num_accelerators",
        str(processes),
        "--master_port",
        str(port),
        str(script),
        *args,
    ]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    extensions = str(Path(sys.prefix) / "torch_extensions")
    ours = {"PATH": path, "PYTHONPATH": str(ROOT), "TORCH_EXTENSIONS_DIR": extensions}
    ours |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    # Nothing here is compiled; torch's compiler is not imported for DeepSpeed's Muon, which every rank would
    # load and none uses.
    return os.environ | ours | {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}


def start(script: Path, *args: str, processes: int) -> subprocess.Popen:
    """The launcher in a process group of its own, so that a hang can be ended with everything it started."""
    return subprocess.Popen(
        command(script, *args, processes=processes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout: float = 600) -> tuple[int, str]:
    """Exit status and output; a launch that takes longer is killed, and fails."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"the launch hung; its output was\n{process.communicate()[0]}") from None
    return process.returncode, output


def launch(script: Path, *args: str, processes: int = 2) -> tuple[int, str]:
    return finish(start(script, *args, processes=processes))


def start_ranks(
    script: str | Path, *args: str, processes: int = 2, imports: Sequence[str] = ()
) -> list[Fork]:
    """The processes that a launcher would start, without its own two. imports: more that they begin with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = environment() | {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        Fork(
            script,
            *args,
            env=place | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
            imports=("deepspeed", *imports),
        )
        for rank in range(processes)
    ]


def ended(started: Sequence[Fork]) -> tuple[list[int], str]:
    """Exit statuses, and outputs one behind the other. Where one has failed the others are killed, as by a
    launcher."""
    end = time.monotonic() + GENEROUS
    while None in (codes := [rank.poll() for rank in started]) and not any(codes) and time.monotonic() < end:
        time.sleep(0.05)
    for rank in started:
        rank.kill()
    return [rank.wait() for rank in started], "".join(rank.out + rank.err for rank in started)


def launch_runs(plan: list[tuple[dict[str, Any], str]], folder: Path, imports: Sequence[str] = ()) -> None:
    """Whole runs one after the other in two processes: plain configs, and what each continues (`none`:
    nothing)."""
    (folder / "plan.json").write_text(json.dumps(plan))
    worker = Path(__file__).with_name("run_worker.py")
    codes, output = ended(start_ranks(worker, str(folder / "plan.json"), imports=imports))
    assert codes == [0, 0], output


def without_key_bias(name: str, tensor: Tensor) -> Tensor:
    """Attention does not depend on it, so its gradient is rounding, which AdamW makes as large as any
    other."""
    if tensor.ndim and name.endswith(("in_proj_bias", "qkv.bias")):
        return torch.cat(tensor.chunk(3)[::2])
    return tensor.chunk(2)[1] if tensor.ndim and name.endswith(".kv.bias") else tensor


def assert_same_curve(ours: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> None:
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(reference), atol=2e-5, rtol=2e-5)


def assert_same_state(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        pair = without_key_bias(name, ours[name]), without_key_bias(name, tensor)
        torch.testing.assert_close(*pair, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
