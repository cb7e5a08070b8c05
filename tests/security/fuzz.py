"""Fuzzes the readers of strangers' data: `make fuzz CASES=1000000`.

    python tests/security/fuzz.py --cases 100000
    python tests/security/fuzz.py --cases 50000 --only tar image --seed 7
    python tests/security/fuzz.py --cases 1000000 --record benchmarks/records/reliability.json
    python tests/security/fuzz.py --atheris tar   # led by coverage, until Ctrl-C; needs `pip install atheris`

A case is known by target, seed and number. One that is answered by anything but a value or a typed error is
written to tests/security/cases, and `make test` reads it from then on. Each process may take 1 GiB beside
what its imports took. 0: nothing failed; 1: something did.
"""

import argparse
import faulthandler
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers"), str(ROOT / "benchmarks")]
CASES = ROOT / "tests/security/cases"
LONGEST = 60
"""Seconds of one case, after which its process ends with a traceback."""
REPORT = 500
"""Cases between two reports of a worker."""


def main() -> int:
    args = _arguments()
    if args.atheris:
        return _led_by_coverage(args.atheris)
    if args.worker:
        return _work(args.worker, args.seed, args.first, args.cases)
    logging.disable(logging.WARNING)
    from fuzz_targets import targets

    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder))
    names = args.only or list(known)
    if strange := set(names) - known.keys():
        print(f"fuzz.py: no target {min(strange)!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    whole = sum(known[name].share for name in names)
    plan = {name: -(-args.cases * known[name].share // whole) for name in names}
    start = time.monotonic()
    found = _run(plan, args.seed, args.jobs)
    failed = sum(result["failed"] for result in found.values())
    done = sum(result["cases"] for result in found.values())
    print(f"{done} cases in {time.monotonic() - start:.0f} s, {failed} failed", flush=True)
    if args.record:
        _record(args.record, found, args.seed)
    return int(failed > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000, metavar="N", help="of all targets together")
    parser.add_argument("--only", nargs="+", metavar="TARGET")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes"
    )
    parser.add_argument("--record", metavar="FILE", help="add the counts to this record")
    parser.add_argument("--atheris", metavar="TARGET")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(plan: dict[str, int], seed: int, jobs: int) -> dict[str, Counter[str]]:
    """Fuzzes the targets, a process for each, so many at once. A process that dies is a failed case, after
    which another one goes on."""
    waiting = [(name, 0) for name in plan]
    running: dict[subprocess.Popen[str], tuple[str, int, Path]] = {}
    found = {name: Counter[str]() for name in plan}
    told = 0.0
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, first = waiting.pop(0)
                out = Path(folder, f"{name}-{first}")
                running[_worker(name, seed, first, plan[name] - first, out)] = name, first, out
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                name, first, out = running.pop(process)
                report = _last_report(out)
                _add(found[name], report)
                if process.returncode != 0:
                    number = report["next"]
                    _keep(
                        name,
                        seed,
                        number,
                        f"its process ended with {process.returncode}\n{out.read_text()[-2000:]}",
                    )
                    found[name] += Counter(cases=1, failed=1)
                    if number + 1 < plan[name]:
                        waiting.append((name, number + 1))
            if time.monotonic() - told > 10:
                told = time.monotonic()
                _tell(found, [_last_report(out) for _, _, out in running.values()], plan)
    return found


def _worker(name: str, seed: int, first: int, cases: int, out: Path) -> "subprocess.Popen[str]":
    words = ["--worker", name, "--seed", str(seed), "--first", str(first), "--cases", str(cases)]
    with open(out, "w") as file:
        return subprocess.Popen([sys.executable, __file__, *words], stdout=file, stderr=file, text=True)


def _last_report(out: Path) -> dict[str, int]:
    lines = [line for line in out.read_text(errors="replace").splitlines() if line.startswith('{"cases"')]
    return json.loads(lines[-1]) if lines else {"cases": 0, "failed": 0, "ms": 0, "mib": 0, "next": 0}


def _add(counts: Counter[str], report: dict[str, int]) -> None:
    for name in ("cases", "failed"):
        counts[name] += report[name]
    for name in ("ms", "mib"):
        counts[name] = max(counts[name], report[name])


def _tell(found: dict[str, Counter[str]], now: list[dict[str, int]], plan: dict[str, int]) -> None:
    done, failed = (
        sum(counts[what] for counts in found.values()) + sum(report[what] for report in now)
        for what in ("cases", "failed")
    )
    print(f"  {done} of {sum(plan.values())} cases, {failed} failed", flush=True)


def _work(name: str, seed: int, first: int, cases: int) -> int:
    """Tries cases of one target in this process, and reports as it goes."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    from fuzz_targets import targets
    from fuzzing import fault, limited_memory

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        target = targets(folder)[name]
        tempfile.tempdir = text
        os.chdir(folder)
        target.read(target.seeds[0], folder)  # what it imports when it is first called counts as imports
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        failed, slowest = 0, 0.0
        with limited_memory():
            for number in range(first, first + cases):
                if (number - first) % REPORT == 0:
                    _report(number - first, failed, slowest, before, number)
                data = target.case(seed, number)
                faulthandler.dump_traceback_later(LONGEST, exit=True)
                start = time.perf_counter()
                wrong = fault(target, data, folder)
                slowest = max(slowest, time.perf_counter() - start)
                faulthandler.cancel_dump_traceback_later()
                if wrong:
                    failed += 1
                    if failed <= 20:
                        _keep(name, seed, number, wrong, data)
        _report(cases, failed, slowest, before, first + cases)
    return 0


def _report(cases: int, failed: int, slowest: float, before: int, number: int) -> None:
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    report = {"cases": cases, "failed": failed, "ms": round(1000 * slowest), "mib": mib, "next": number}
    print(json.dumps(report), flush=True)


def _keep(name: str, seed: int, number: int, wrong: str, data: bytes | None = None) -> None:
    """Writes the input of a case to where `make test` finds it."""
    if data is None:
        from fuzz_targets import targets

        with tempfile.TemporaryDirectory() as folder:
            data = targets(Path(folder))[name].case(seed, number)
    folder = CASES / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed{seed}_{number}.bin"
    path.write_bytes(data)
    print(f"FAILED {name}, case {number}: {wrong}\n  kept as {path.relative_to(ROOT)}", flush=True)


def _record(path: str, found: dict[str, Counter[str]], seed: int) -> None:
    from record import add_entry

    results = [{"name": name, "counts": dict(counts)} for name, counts in found.items()]
    totals = {what: sum(counts[what] for counts in found.values()) for what in ("cases", "failed")}
    totals |= {what: max(counts[what] for counts in found.values()) for what in ("ms", "mib")}
    add_entry(
        path,
        "fuzz: spoiled inputs are answered by a value or a typed error, nothing runs, nothing is written "
        "outside, and memory grows by less than 1 GiB; ms is the slowest case, mib the most memory added",
        [{"name": "all", "counts": totals}, *results],
        seeds=(seed,),
    )


def _led_by_coverage(name: str) -> int:
    try:
        import atheris  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("fuzz.py: atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["pipeline"]):
        from fuzz_targets import targets
    from fuzzing import fault

    folder = Path(tempfile.mkdtemp(prefix="dtem-fuzz-"))
    target = targets(folder)[name]
    tempfile.tempdir = str(folder)
    os.chdir(folder)

    def one(data: bytes) -> None:
        if wrong := fault(target, data, folder):
            raise AssertionError(wrong)

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], "-rss_limit_mb=4096", str(corpus)], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
