"""Shards over http: the same batches as from the disk, in a bounded cache, through a server that fails now and then."""

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from shardkit import config

from pipeline.data import reader, storage
from pipeline.data.manifest import load_manifest
from pipeline.data.stream import build_eval_loader, build_stream
from pipeline.data.write import index_shards
from pipeline.errors import SampleError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Fails as `faults` says, request after request: 500, or `short` for a body that breaks off."""

    faults: list[object] = []
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path.rpartition("/")[2])
        fault = self.faults.pop(0) if self.faults and self.path.endswith(".tar") else None
        if fault == 500:
            self.send_error(500)
        elif fault == "short":
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:700])
            self.close_connection = True
        elif fault == "other":
            data = bytes(Path(self.translate_path(self.path)).stat().st_size)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server(uneven, monkeypatch) -> Iterator[str]:
    monkeypatch.setattr(storage, "PAUSE", 0.01)
    Handler.faults, Handler.asked = [], []
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(uneven)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def batches(source, workers: int = 0, count: int = 12):
    stream = build_stream("t", config(source, workers=workers), seed=5, rank=0, world_size=1)
    return list(islice(iter(stream), count))


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_batches_are_those_of_the_disk(server, uneven, workers):
    assert load_manifest(server).digest == load_manifest(str(uneven)).digest
    for near, far in zip(batches(uneven), batches(server, workers), strict=True):
        assert near.keys == far.keys and torch.equal(near.images, far.images)


def test_a_pattern_of_urls_takes_a_part_and_wrong_ones_are_named(server):
    assert load_manifest(server + "/part-{00001..00003}.tar").num_samples == 18
    with pytest.raises(SampleError, match="does not list .*part-00005.tar"):
        load_manifest(server + "/part-{00001..00007}.tar")


def test_the_cache_keeps_two_windows_and_no_more(server):
    loader = build_eval_loader("t", config(server, shuffle_shards=1, eval_batch_size=1), rank=0, world_size=1)
    for _ in loader:
        assert len(list(reader.cache_folder().rglob("*.tar"))) <= 4, "three, and the one that is being fetched ahead"
    for thread in threading.enumerate():
        if thread.name == "shards":
            thread.join(timeout=30)
    assert len(list(reader.cache_folder().rglob("*.tar"))) <= 3
    assert not list(reader.cache_folder().rglob("*.part"))


def test_cached_shards_are_not_asked_for_again(server):
    source = server + "/part-{00001..00002}.tar"
    batches(source)
    Handler.asked.clear()
    batches(source)
    assert not [name for name in Handler.asked if name.endswith(".tar")]


@pytest.mark.parametrize("fault", [500, "short", "other"])
def test_a_failing_transfer_is_tried_again(server, uneven, fault):
    Handler.faults = [fault, None, fault]
    for near, far in zip(batches(uneven), batches(server), strict=True):
        assert near.keys == far.keys and torch.equal(near.images, far.images)


def test_a_server_that_goes_on_failing_ends_the_run_with_its_reason(server, monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    Handler.faults = ["other"] * 100
    with pytest.raises(SampleError, match="another sha256 than the manifest says"):
        batches(server)


def test_a_shard_that_is_gone_or_of_another_size_is_found_before_training(server, uneven, tmp_path):
    for name in uneven.glob("*.json"):
        (tmp_path / name.name).write_bytes(name.read_bytes())
    plain = (tmp_path / "manifest.json").read_text().replace('"root": null', f'"root": "{server}/nowhere"')
    (tmp_path / "manifest.json").write_text(plain)
    with pytest.raises(SampleError, match="nowhere/part-00000.tar is missing"):
        build_stream("t", config(tmp_path), seed=0, rank=0, world_size=1)


def test_without_a_manifest_the_command_that_makes_one_is_named_and_works(server, uneven, tmp_path):
    (uneven / "bare").mkdir()
    for path in uneven.glob("*.tar"):
        (uneven / "bare" / path.name).hardlink_to(path)
    (uneven / "bare" / "classes.json").write_text('["a", "b", "c"]')
    with pytest.raises(SampleError, match=r"has no manifest.json.*dtem shards make index"):
        load_manifest(f"{server}/bare")
    tars = [f"{server}/bare/part-0000{n}.tar" for n in range(5)]
    index_shards(tars, tmp_path / "made", root=f"{server}/bare")
    assert load_manifest(str(tmp_path / "made")).digest == load_manifest(str(uneven)).digest
    assert len(batches(tmp_path / "made", count=2)) == 2
