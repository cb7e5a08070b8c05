"""`dtem doctor`: what this machine has and lacks, and the way out of each lack."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

DISTRIBUTION = "dtem-pipeline"
GIB = 1 << 30
STALE_LOCK_SECONDS = 600
"""Compiling DeepSpeed's CPU operator takes a minute; a lock that is older belongs to a build that was
killed."""


@dataclass(frozen=True)
class Finding:
    """One line of the table. `missing` fails the command; `warn` costs speed or an optional feature."""

    name: str
    status: Literal["ok", "warn", "missing"]
    detail: str
    way_out: str = ""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="say what this machine has and lacks",
        description=__doc__,
        epilog="example: dtem doctor --shards data/digits",
    )
    parser.add_argument(
        "--shards",
        metavar="PATH",
        action="append",
        default=[],
        help="also check that these shards have a manifest that fits",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def run(args: argparse.Namespace) -> int:
    """0 if nothing needed is missing, else 1."""
    findings = [finding for check in CHECKS for finding in _answered(check)]
    findings += [check_shards(source) for source in args.shards]
    missing = [finding.name for finding in findings if finding.status == "missing"]
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return 1 if missing else 0
    for line in table(findings):
        print(line)
    print(f"missing: {', '.join(missing)}" if missing else "nothing that is needed is missing")
    return 1 if missing else 0


def _answered(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of a check; a package that it needs and that is not there is a finding too."""
    try:
        return list(check())
    except ImportError as err:
        return [Finding(check.__name__.removeprefix("check_"), "missing", str(err), "make install")]


def table(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.status:8}{finding.name:22}{finding.detail}"
        if finding.way_out:
            yield f"{'':30}-> {finding.way_out}"


def check_python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    version, wanted = (
        ".".join(map(str, sys.version_info[:3])),
        metadata.metadata(DISTRIBUTION)["Requires-Python"],
    )
    fits = version in SpecifierSet(wanted)
    way_out = "" if fits else f"needs {wanted}: make clean install PYTHON=python3.11"
    yield Finding("python", "ok" if fits else "missing", f"{version} ({sys.executable})", way_out)


def check_packages() -> Iterator[Finding]:
    """Each requirement of setup.cfg against what is installed."""
    from packaging.requirements import Requirement

    for text in metadata.requires(DISTRIBUTION) or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Finding(need.name, "missing", f"needs {need.specifier or 'any version'}", "make install")
            continue
        fits = need.specifier.contains(version, prereleases=True)
        yield Finding(
            need.name,
            "ok" if fits else "missing",
            version,
            "" if fits else f"needs {need.specifier}: make install",
        )


def check_imports() -> Iterator[Finding]:
    """The fragile packages, each in a process of its own, so that a crash or a hang there is a finding
    here."""
    slim = "on a slim image: apt-get install libgl1 libglib2.0-0"
    for statement, hint in {
        "import deepspeed": "make install",
        "import mmseg.models": slim,
        "import open_clip": "make install",
    }.items():
        try:
            done = subprocess.run(
                [sys.executable, "-c", statement], capture_output=True, text=True, timeout=180
            )
        except subprocess.TimeoutExpired:
            yield Finding(
                statement, "missing", "no answer in 180 s", "look for a stale lock below, or a slow disk"
            )
            continue
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield (
            Finding(statement, "missing", last, hint)
            if done.returncode
            else Finding(statement, "ok", "works")
        )


def check_mm_families() -> Iterator[Finding]:
    for name in ("mmengine", "mmcv", "mmsegmentation"):
        rivals = [d for d in (name, f"{name}-lite", f"onedl-{name}") if _installed(d)]
        if len(rivals) > 1:
            yield Finding(
                name,
                "warn",
                f"{' and '.join(rivals)} overwrite each other's files",
                f"pip uninstall {' '.join(rivals)}, then make install",
            )


def check_tokenizer() -> Iterator[Finding]:
    """Captioning tokenises offline, with the vocabulary that open_clip ships."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    files = metadata.files("open_clip_torch") if _installed("open_clip_torch") else None
    found = any(file.name == name and Path(str(file.locate())).exists() for file in files or ())
    yield Finding(
        "open_clip tokenizer",
        "ok" if found else "missing",
        name,
        "" if found else "pip install --force-reinstall --no-deps open_clip_torch",
    )


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
    """Kernels of scaled_dot_product_attention that run here, without a bias and with the one of proportional
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
        "close other programs, or lower data.batch_size and data.workers",
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


def _enough(name: str, size: int, least: int, way_out: str) -> Finding:
    fits = size >= least * GIB
    return Finding(
        name,
        "ok" if fits else "warn",
        f"{size / GIB:.1f} GiB",
        "" if fits else f"less than {least} GiB: {way_out}",
    )


def check_compiler() -> Iterator[Finding]:
    """DeepSpeed compiles its CPU communication once per environment; GPUs do without."""
    import torch

    lack: Literal["warn", "missing"] = "warn" if torch.cuda.is_available() else "missing"
    beside_python = Path(sys.executable).parent / "ninja"
    ninja = shutil.which("ninja") or (str(beside_python) if beside_python.exists() else None)
    for name, path, way_out in (
        ("g++", shutil.which("g++"), "apt-get install g++"),
        ("ninja program", ninja, "make install"),
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
    deepspeed = "several machines with the deepspeed launcher"
    for tool, use in {"java": "METEOR, SPICE and PTB", "ssh": "several machines", "pdsh": deepspeed}.items():
        path = shutil.which(tool)
        yield (
            Finding(tool, "ok", path)
            if path
            else Finding(
                tool, "warn", f"not found; optional, for {use}", f"apt-get install {APT.get(tool, tool)}"
            )
        )


APT = {"java": "default-jre-headless", "ssh": "openssh-client"}


def check_shards(source: str) -> Finding:
    from pipeline.data.shards.find import load_manifest
    from pipeline.errors import PipelineError

    try:
        manifest = load_manifest(source)
    except PipelineError as err:
        return Finding("shards", "missing", str(err), f"dtem shards verify {source}")
    return Finding(
        "shards", "ok", f"{source}: {manifest.num_samples} samples in {len(manifest.shards)} shards"
    )


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_imports,
    check_mm_families,
    check_tokenizer,
    check_device,
    check_machine,
    check_compiler,
    check_optional_tools,
)
