"""Nothing in a shard location, manifest or shard can run code or lead outside of what the user named."""

import ast
import json
from pathlib import Path

import pytest

import pipeline.data
from pipeline.data.make.write import index_shards
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.locations import MAX_SHARDS, expand
from pipeline.data.shards.tar_index import ShardIndex, index_tar
from pipeline.errors import SampleError

HOSTILE = [
    "pipe:touch {canary}",
    "pipe: touch {canary}",
    "PIPE:touch {canary}",
    "pipe:cat x | touch {canary}.tar",
    "|touch {canary}",
    "-o{canary}",
    "--output={canary}",
    "$(touch {canary}).tar",
    "`touch {canary}`.tar",
    "train-$(touch {canary})-{{0..3}}.tar",
    "http://localhost/$(touch {canary}).tar",
    "x.tar; touch {canary}",
    "x.tar\ntouch {canary}",
    "x.tar\0touch {canary}",
    "file:touch {canary}",
    "ssh://host/{canary}.tar",
    "sftp://host/x.tar",
    "ftp://host/x.tar",
    "gopher://host/x.tar",
    "data:text/plain,x.tar",
    "python:os.system('touch {canary}')",
    "reference://x.tar",
    "simplecache::file://{canary}",
    "zip://x::http://localhost/x.zip",
    "filecache::pipe:touch {canary}",
    "github://a:b@c/x.tar",
    "hdfs://host/x.tar",
    "local://{canary}",
    "memory://x.tar",
    "http://host/x.tar?token=$HOME",
    "http://host/x.tar?a=b",
    "${{HOME}}/x.tar",
    "\u202exrat.tar",
    " x.tar",
    "",
]


@pytest.mark.parametrize("location", HOSTILE)
def test_a_hostile_location_is_refused_and_runs_nothing(tmp_path, monkeypatch, location):
    canary = tmp_path / "canary"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOPEN_REWRITE", f"http=pipe:touch {canary};/=pipe:touch {canary} ")
    for source in (location.format(canary=canary), [location.format(canary=canary)]):
        with pytest.raises(SampleError):
            load_manifest(source)
    assert not canary.exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "pattern", ["x-{0..999999999999}.tar", "x-" + "{a,b}" * 40 + ".tar", "{0..99999}{0..99999}.tar"]
)
def test_a_pattern_that_would_fill_the_memory_is_refused(pattern):
    with pytest.raises(SampleError, match=f"more than {MAX_SHARDS} shards"):
        expand(pattern)


@pytest.mark.parametrize("pattern", ["x-{}.tar", "x-{1}.tar", "x-{a..b}.tar", "x-{1..2", "x-{3..1}.tar"])
def test_a_pattern_that_cannot_be_meant_is_refused(pattern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SampleError):
        load_manifest(pattern)


def test_a_pickle_in_a_shard_is_never_opened(tmp_path):
    import io
    import pickle
    import tarfile

    canary = tmp_path / "canary"

    class Exploit:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    folder = tmp_path / "set"
    folder.mkdir()
    with tarfile.open(folder / "x.tar", "w") as tar:
        for suffix in ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "cls", "jpg", "json", "seg.png"):
            info = tarfile.TarInfo(f"a.{suffix}")
            info.size = len(data := pickle.dumps(Exploit()))
            tar.addfile(info, io.BytesIO(data))
    from pipeline.data.make.verify import verify

    index_shards([str(folder / "x.tar")], folder)
    found = verify(str(folder), quick=False)
    assert found.num_samples == 1 and len(found.problems) == 5 and not canary.exists()


def test_a_manifest_leads_nowhere_but_to_its_root(tmp_path):
    for name in (
        "../x.tar",
        "/etc/x.tar",
        "a/b.tar",
        "-x.tar",
        ".x.tar",
        "x.tar\0",
        "pipe:x",
        "http://h/x.tar",
        7,
        None,
        ["x.tar"],
    ):
        shard = {"name": name, "num_samples": 1, "num_bytes": 1, "sha256": "", "index_sha256": ""}
        plain = {"format": 1, "root": None, "schema": [], "classes": [], "shards": [shard], "digest": ""}
        (tmp_path / "manifest.json").write_text(json.dumps(plain))
        with pytest.raises(SampleError, match="plain name"):
            load_manifest(str(tmp_path))


@pytest.mark.parametrize("name", ["offsets", "sizes"])
@pytest.mark.parametrize("value", [-2, 101, 2**40, 2**63, 1e300, "x", None, [], {}])
def test_an_index_cannot_point_outside_of_its_shard(name, value):
    plain = {"keys": ["a"], "suffixes": ["cls"], "offsets": [[0]], "sizes": [[1]]}
    assert ShardIndex.from_json(json.dumps(plain).encode(), 100).members(0) == {"cls": (0, 1)}
    with pytest.raises((ValueError, TypeError, OverflowError)):
        ShardIndex.from_json(json.dumps(plain | {name: [[value]]}).encode(), 100)


def test_names_in_a_tar_are_keys_and_never_paths(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("../../evil.cls", "/tmp/evil.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    index = index_tar(tmp_path / "x.tar")
    assert len(index.keys) == 2 and [path.name for path in tmp_path.iterdir()] == ["x.tar"]


FORBIDDEN_MODULES = {"pickle", "shelve", "marshal", "subprocess", "webdataset", "dill", "joblib", "yaml"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "system",
    "popen",
    "extractall",
    "extract",
    "gopen",
    "url_to_fs",
}


def test_the_data_package_names_nothing_that_can_run_data():
    for path in Path(pipeline.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES, path
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                owner = getattr(getattr(node.func, "value", None), "id", "")
                assert called not in FORBIDDEN_CALLS or (owner, called) == ("re", "compile"), (
                    f"{path}: {called}"
                )
                assert not any(kw.arg == "shell" or (kw.arg == "allow_pickle") for kw in node.keywords), path
