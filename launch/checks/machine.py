"""Checks of the machine: devices, memory, compiler, and tools that some features call."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Literal

from launch.checks.finding import Finding
from pipeline.extras import command

GIB = 1 << 30
STALE_LOCK_SECONDS = 600
"""Age from which a lock belongs to a killed build; DeepSpeed's CPU operator compiles in about a minute."""
APT = {"java": "default-jre-headless", "ssh": "openssh-client"}


def check_device() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding(
            "gpu",
            "warn",
            "none that torch can use; everything runs on the CPU, slowly",
            "check the driver with nvidia-smi",
        )
        fast = torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")
        yield Finding(
            "bf16",
            "ok" if fast else "warn",
            "in hardware" if fast else "emulated",
            "" if fast else "engine.precision=fp32 is faster on this CPU",
        )
        yield Finding("attention kernels", "ok", _attention_kernels("cpu", torch.float32))
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield Finding(
            f"gpu {index}", "ok", f"{card.name}, {card.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
        )
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    yield Finding(
        "bf16",
        "ok" if fast else "warn",
        "in hardware" if fast else "not in hardware",
        "" if fast else "engine.precision=fp32",
    )
    yield Finding("attention kernels", "ok", _attention_kernels("cuda", torch.bfloat16))


def _attention_kernels(device: str, dtype) -> str:
    """Kernels of scaled_dot_product_attention that run here, without a bias and with that of proportional
    attention."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query = torch.zeros(1, 2, 64, 64, device=device, dtype=dtype)
    bias = torch.zeros(1, 1, 1, 64, device=device, dtype=dtype).expand(1, 1, 64, 64)
    runs: dict[str, list[str]] = {"plain": [], "with sizes": []}
    for kernel in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ):
        for case, mask in zip(runs, (None, bias), strict=True):
            try:
                with sdpa_kernel(kernel):
                    torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
            except RuntimeError:
                continue
            runs[case].append(kernel.name.removesuffix("_ATTENTION").lower())
    return "; ".join(f"{case}: {', '.join(kernels)}" for case, kernels in runs.items())


def check_machine() -> Iterator[Finding]:
    import psutil

    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "not set")
    yield Finding("cpu", "ok", f"{cores} cores, OMP_NUM_THREADS {threads}")
    yield _enough(
        "memory",
        psutil.virtual_memory().available,
        4,
        "close other programs, or lower data.batch_size, data.views or data.workers",
    )
    yield _enough(
        "disk", shutil.disk_usage(".").free, 10, "shards, checkpoints and the environment need room here"
    )
    if Path("/dev/shm").exists():
        yield _enough(
            "/dev/shm",
            shutil.disk_usage("/dev/shm").total,
            1,
            "in a container: docker run --shm-size=8g (or data.workers=0)",
        )


def memory_here() -> tuple[int, str]:
    """Bytes for one rank, and whose they are."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "gpu 0"
    return psutil.virtual_memory().available, "this machine, without a GPU,"


def _enough(name: str, size: int, least: int, way_out: str) -> Finding:
    fits = size >= least * GIB
    return Finding(
        name,
        "ok" if fits else "warn",
        f"{size / GIB:.1f} GiB",
        "" if fits else f"less than {least} GiB: {way_out}",
    )


def check_compiler() -> Iterator[Finding]:
    """Tools with which DeepSpeed compiles its communication on CPUs, once per environment, and stale
    locks."""
    if util.find_spec("deepspeed") is None:
        return
    import torch

    lack: Literal["warn", "missing"] = "warn" if torch.cuda.is_available() else "missing"
    beside_python = Path(sys.executable).parent / "ninja"
    ninja = shutil.which("ninja") or (str(beside_python) if beside_python.exists() else None)
    for name, path, way_out in (
        ("g++", shutil.which("g++"), "apt-get install g++"),
        ("ninja program", ninja, command("deepspeed")),
    ):
        yield (
            Finding(name, "ok", path)
            if path
            else Finding(name, lack, "needed by DeepSpeed on the CPU", way_out)
        )
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache/torch_extensions"))
    for lock in sorted(root.glob("**/lock")):
        age = time.time() - lock.stat().st_mtime
        if age > STALE_LOCK_SECONDS:
            yield Finding(
                "torch_extensions",
                "warn",
                f"{lock} is {age / 60:.0f} minutes old; launches wait for it without end",
                f"rm '{lock}'",
            )


def check_optional_tools() -> Iterator[Finding]:
    for name, use in {"java": "METEOR, SPICE and PTB", "ssh": "several machines"}.items():
        yield found_tool(name, use)


def found_tool(name: str, use: str) -> Finding:
    """Finding on an optional program."""
    if (path := shutil.which(name)) is not None:
        return Finding(name, "ok", path)
    return Finding(name, "warn", f"not found; optional, for {use}", f"apt-get install {APT[name]}")
