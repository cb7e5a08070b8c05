"""Records: how they were made, in words that a reader of the repository can use, and figures that agree with
one another."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from statistics import median

import pytest
from record import add_entry, as_read, commit_of, write_record

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "benchmarks/records").glob("*.json"))
ENTRIES = [
    pytest.param(path, entry, id=f"{path.stem}-{number}")
    for path in RECORDS
    for plain in [json.loads(path.read_text())]
    for number, entry in enumerate(plain.get("entries", [plain]))
]
"""Each record with its file, which may hold several."""
ROOMS = ("docs", "configs", "benchmarks")
PAGES = [
    ROOT / "Makefile",
    *ROOT.glob("*.md"),
    *(path for room in ROOMS for path in (ROOT / room).rglob("*")),
]
TEXTS = [path for path in PAGES if path.name == "Makefile" or path.suffix in (".md", ".json", ".py", ".sh")]
MACHINES_OWN = re.compile(r"(?<![\w.}])/(work|root|home|Users|tmp|mnt|scratch)/")
ABSOLUTE = re.compile(r"(?:(?<=[\s=:,'\"])|^|file://)/[\w.~]")
LEARNED = ("dtem", "dtem_untrained")


def git(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "benchmarks/records").mkdir(parents=True)
    (tmp_path / "launch/measure").mkdir(parents=True)
    (tmp_path / "launch/measure/sweep.py").write_text("a = 1\n")
    (tmp_path / "benchmarks/records/x.json").write_text("{}\n")
    (tmp_path / ".gitignore").write_text("/runs/\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "clean"),
    [
        ("launch/measure/sweep.py", False),
        ("configs/new.py", False),
        ("benchmarks/new.py", False),
        ("benchmarks/records/x.json", True),
        ("benchmarks/records/new.json", True),
        ("runs/x/metrics.jsonl", True),
        (None, True),
    ],
)
def test_a_tree_is_clean_where_all_but_records_is_committed(checkout, changed, clean):
    if changed:
        (checkout / changed).parent.mkdir(parents=True, exist_ok=True)
        (checkout / changed).write_text("changed\n")
    assert commit_of(checkout / "benchmarks").endswith("+changes") is not clean


def test_the_commit_of_no_checkout_is_not_a_commit(tmp_path, monkeypatch):
    assert commit_of(tmp_path) == "unknown: no git checkout"
    monkeypatch.setenv("PATH", "")
    assert commit_of(ROOT) == "unknown: no git checkout"
    monkeypatch.setenv("DTEM_COMMIT", "c" * 40)
    assert commit_of(tmp_path) == "c" * 40


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("/home/me/dtem/data/camvid", "data/camvid"),
        ("/home/me/dtem/benchmarks/x.py", "benchmarks/x.py"),
        ("/home/me/data/camvid/train-{00000..00003}.tar", "data/camvid/train-{00000..00003}.tar"),
        ("/data/old/runs/vit/backbone", "runs/vit/backbone"),
        ("/home/me/peers/dtem/deit.py", "PATH/deit.py"),
        ("backbone.weights=/home/me/dtem/runs/vit", "backbone.weights=runs/vit"),
        ("data/camvid", "data/camvid"),
        ("https://example.org/data/x.tar", "https://example.org/data/x.tar"),
        ("50 % of a/b", "50 % of a/b"),
    ],
)
def test_a_command_names_paths_as_a_reader_of_the_repository_would(given, read):
    assert as_read(given, Path("/home/me/dtem")) == read


def test_a_record_says_how_it_was_made(tmp_path, monkeypatch):
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text(
            json.dumps({"output": f"{ROOT}/runs/a", "seed": len(place)})
        )
    monkeypatch.setattr("sys.argv", [f"{ROOT}/benchmarks/x.py", "--train", f"{ROOT}/data/digits"])
    write_record(
        tmp_path / "x.json",
        "a claim",
        [{"name": "a", "scores": {}}],
        runs=[tmp_path / "first", tmp_path / "second"],
    )
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["command"] == "python benchmarks/x.py --train data/digits"
    digests = record["digests"]
    assert all(
        re.fullmatch("[0-9a-f]{64}", value)
        for value in (digests["lock"], digests["installed"], *digests["configs"].values())
    )
    assert digests["configs"].keys() == {"first", "second"} and len(set(digests["configs"].values())) == 2


def test_what_was_measured_before_a_script_is_cut_off_is_kept(tmp_path):
    def results():
        yield {"name": "a", "counts": {"tried": 1}}
        raise KeyboardInterrupt

    for path in (tmp_path / "x.json", tmp_path / "gpu-2026-12-31.json"):
        with pytest.raises(KeyboardInterrupt):
            write_record(path, "a claim", results())
        plain = json.loads(path.read_text())
        [entry] = plain.get("entries", [plain])
        assert entry["unfinished"] and [result["name"] for result in entry["results"]] == ["a"]
        write_record(path, "a claim", [{"name": "a", "counts": {"tried": 1}}])
        plain = json.loads(path.read_text())
        [entry] = plain.get("entries", [plain])
        assert "unfinished" not in entry


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_record_or_page_names_a_path_of_one_machine(path):
    found = [line for line in path.read_text().splitlines() if MACHINES_OWN.search(line)]
    assert not found, f"{path.relative_to(ROOT)} has a machine's own path: {found[0]}"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_names_relative_paths_only(path):
    assert not ABSOLUTE.search(path.read_text())


@pytest.mark.parametrize("text", ['"/data/x"', "--out /y/z", "weights=/scratch/a", "file:///a", "C='/b'"])
def test_a_path_from_the_root_is_seen(text):
    assert ABSOLUTE.search(text) and not ABSOLUTE.search("images/s, 1 / 2, data/x, https://example.org/x")


def test_an_entry_takes_the_place_of_that_of_the_same_claim(tmp_path):
    path = tmp_path / "x.json"
    for claim, number in (("b", 1), ("a", 2), ("b", 3)):
        add_entry(path, claim, [{"name": "kills", "counts": {"tried": number}}])
    entries = json.loads(path.read_text())["entries"]
    assert [(entry["claim"], entry["results"][0]["counts"]["tried"]) for entry in entries] == [
        ("a", 2),
        ("b", 3),
    ]


@pytest.mark.parametrize(("path", "record"), ENTRIES)
def test_a_kept_record_has_the_agreed_form_and_a_command_that_names_it(path, record):
    assert {"claim", "command", "commit", "date", "hardware", "versions", "seeds", "results"} <= record.keys()
    assert "unfinished" not in record, "its script was cut off"
    assert re.fullmatch("[0-9a-f]{40}", record["commit"]), "made from a changed tree"
    python, script, *arguments = shlex.split(record["command"])
    assert python == "python" and (ROOT / script).is_file()
    written = (
        arguments[arguments.index("--record") + 1]
        if "--record" in arguments
        else f"benchmarks/records/{Path(record['command'].split()[1]).stem}.json"
    )
    # a file of several records is the default of several scripts
    if "--record" not in arguments and f"records/{path.name}" in (ROOT / script).read_text():
        written = f"benchmarks/records/{path.name}"
    assert written == f"benchmarks/records/{path.name}"


@pytest.mark.parametrize(("path", "record"), ENTRIES)
def test_the_figures_of_a_record_agree_with_one_another(path, record):
    names = [result["name"] for result in record["results"]]
    assert names and len(set(names)) == len(names)
    for result in record["results"]:
        assert "ratio" in result or "scores" in result or "counts" in result
        if "ratio" in result:
            check_ratio(result, len(record["seeds"]))
        if "policies" in result:
            check_policies(result, len(record["seeds"]))


def check_ratio(result, num_seeds):
    """The turns are paired: a ratio lies between the extremes of both sides. Where all scores are kept, all
    follows from them."""
    ours, peer, over = (result[side] for side in ("ours", "peer", "ratio"))
    assert ours["n"] == peer["n"] == over["n"] >= 1
    for side in (ours, peer, over):
        low, high = side.get("quartiles", (side["min"], side["max"]))  # older records have none
        assert side["min"] <= low <= side["median"] <= high <= side["max"]
    assert (
        ours["min"] / peer["max"] <= over["min"] * 1.001 and over["max"] <= ours["max"] / peer["min"] * 1.001
    )
    if "scores" in result:
        mine, other = result["scores"].values()
        assert len(mine) == len(other) == over["n"] == num_seeds
        pairs = [a / b for a, b in zip(mine, other, strict=True)]
        for side, values in ((ours, mine), (peer, other), (over, pairs)):
            wanted = {"median": median(values), "min": min(values), "max": max(values)}
            assert {name: side[name] for name in wanted} == pytest.approx(wanted, rel=1e-3)


def check_policies(result, num_seeds):
    """What differs between seeds has one score per seed, what does not has one; a policy's MACs are below the
    unmerged model's and follow its merges."""
    scores, policies = result["scores"], result["policies"]
    assert scores.keys() == {"none", *policies}
    seeded = scores if len(scores["none"]) > 1 else LEARNED
    for policy, values in scores.items():
        alone = "kinds" in result and len(values) in (1, num_seeds)  # a board says what is drawn
        assert alone or len(values) == (num_seeds if policy in seeded else 1), policy
        assert all(0 <= value <= max(scores["none"]) * 1.01 for value in values)
    main = policies["dtem"] if "dtem" in policies else next(iter(policies.values()))
    assert result["reduction"] == main["reduction"] and result["macs_ratio"] == main["macs_ratio"]
    most = 1.1 if "kinds" in result else 1  # parts of a policy may cost more than a few merges save
    for policy in policies.values():
        assert 0 < policy["macs_ratio"] < most and sum(policy["reduction"]) > 0
    assert policies.get("dtem") == policies.get("dtem_untrained")
