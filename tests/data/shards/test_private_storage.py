"""Shards behind a login, and those of the Hugging Face hub, from servers on this machine."""

import base64
import http.server
import json
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from shardkit import config

from pipeline.data.shards import http_access, patience
from pipeline.data.shards.http_access import VARIABLE, headers_for, refuse_unencrypted
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError, StorageError

TOKEN = "a-token-that-nobody-may-see"


class Private(http.server.SimpleHTTPRequestHandler):
    """Answers who shows `wanted`; with `onward`, sends each request on to there."""

    wanted = ("Authorization", f"Bearer {TOKEN}")
    onward = ""
    seen: list[tuple[int, str | None]]

    def do_GET(self) -> None:
        self._answer(super().do_GET)

    def do_HEAD(self) -> None:
        self._answer(super().do_HEAD)

    def _answer(self, serve: Callable[[], None]) -> None:
        name, value = self.wanted
        self.seen.append((self.server.server_port, self.headers.get(name)))  # pyright: ignore
        if self.headers.get(name) != value and not (
            self.onward == "" and self.seen[0][0] != self.seen[-1][0]
        ):
            self.send_error(401)
        elif self.onward:
            self.send_response(302)
            self.send_header("Location", self.onward + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            serve()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., int]]:
    """Starts a server with a handler of these attributes; returns its port."""
    monkeypatch.setattr(patience, "PATIENCE", 0.3)
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere/netrc")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    servers = []

    def start(kind: type, folder: Path, **attributes: object) -> int:
        handler = type("Handler", (kind,), attributes)
        servers.append(
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        )
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def keys(source: str) -> list[str]:
    loader = build_eval_loader("t", config(source), rank=0, world_size=1)
    return [key for batch in loader for key in batch.keys]


def given(monkeypatch, plain: object) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps(plain))


@pytest.mark.parametrize("form", ["token", "header", "netrc"])
def test_shards_behind_a_login_are_read(serve, uneven, monkeypatch, tmp_path, form):
    wanted = {
        "token": ("Authorization", f"Bearer {TOKEN}"),
        "header": ("X-Api-Key", TOKEN),
        "netrc": ("Authorization", "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()),
    }[form]
    port = serve(Private, uneven, wanted=wanted, seen=[])
    if form == "netrc":
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {TOKEN}\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    else:
        given(monkeypatch, {f"127.0.0.1:{port}": TOKEN if form == "token" else {"X-Api-Key": TOKEN}})
    assert keys(f"http://127.0.0.1:{port}") == keys(str(uneven))


def test_without_them_access_is_denied_and_the_message_holds_no_secret(serve, uneven, monkeypatch, caplog):
    port = serve(Private, uneven, seen=[])
    given(monkeypatch, {"127.0.0.1": f"not {TOKEN}"})
    with caplog.at_level(logging.DEBUG), pytest.raises(StorageError, match="access is denied") as info:
        keys(f"http://127.0.0.1:{port}")
    assert TOKEN not in caplog.text + str(info.value)


@pytest.mark.parametrize("header", ["Authorization", "X-Api-Key"])
def test_a_host_that_a_request_is_sent_on_to_gets_none_of_them(serve, uneven, monkeypatch, header):
    seen: list[tuple[int, str | None]] = []
    wanted = (header, TOKEN)
    behind = serve(Private, uneven, wanted=wanted, seen=seen)
    before = serve(Private, uneven, wanted=wanted, seen=seen, onward=f"http://127.0.0.1:{behind}")
    given(monkeypatch, {f"127.0.0.1:{before}": {header: TOKEN}})
    assert keys(f"http://127.0.0.1:{before}") == keys(str(uneven))
    assert {value for port, value in seen if port == before} == {TOKEN}
    assert {value for port, value in seen if port == behind} == {None}


def test_they_go_to_their_host_alone_and_only_encrypted(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login me password x\nmachine b.org login me password x\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    given(monkeypatch, {"a.org": TOKEN, "a.org:8443": "other"})
    assert headers_for("https://a.org/x") == {"Authorization": f"Bearer {TOKEN}"}
    assert headers_for("https://a.org:8443/x") == {"Authorization": "Bearer other"}
    assert headers_for("https://b.org/x") != {} and headers_for("https://c.org/x") == {}
    assert headers_for("http://a.org/x") == {} == headers_for("https://a.org.evil.org/x")
    with pytest.raises(ConfigError, match="http is not encrypted"):
        refuse_unencrypted("http://a.org/x")


@pytest.mark.parametrize("text", ["{", '["x"]', '{"a": 1}', '{"a": {"b": "c\\r\\nX: y"}}'])
def test_credentials_that_do_not_read_are_refused_without_a_word_of_them(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match="does not read") as info:
        headers_for("https://a.org/x")
    assert info.value.__cause__ is None
    assert http_access.VARIABLE in str(info.value)


class Hub(http.server.SimpleHTTPRequestHandler):
    """The part of the hub that a data set is read from: DATASET is the folder."""

    seen: list[str | None]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = json.loads(body)["paths"]
        self._json([entry for entry in self._entries() if entry["path"] in wanted])

    def _answer(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_error(401)
        elif path.startswith("/api/datasets/me/set/tree/"):
            self._json(self._entries())
        elif path.startswith("/api/datasets/me/set"):
            self._json({"id": "me/set", "sha": "0" * 40, "siblings": [], "tags": [], "private": True})
        elif path.startswith("/datasets/me/set/resolve/main/"):
            data = Path(self.directory, path.rpartition("/")[2]).read_bytes()
            start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
            self._send(206 if "Range" in self.headers else 200, data[start:], "application/octet-stream")
        else:
            self.send_error(404)

    def _entries(self) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": path.name,
                "size": path.stat().st_size,
                "oid": f"{path.stat().st_size:040}",
            }
            for path in sorted(Path(self.directory).iterdir())
        ]

    def _json(self, plain: object) -> None:
        self._send(200, json.dumps(plain).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None: ...


def test_a_private_set_of_the_hub_is_read_with_the_token_of_the_environment(serve, uneven, monkeypatch):
    seen: list[str | None] = []
    endpoint = f"http://127.0.0.1:{serve(Hub, uneven, seen=seen)}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert keys("hf://datasets/me/set") == keys(str(uneven))
    assert f"Bearer {TOKEN}" in seen
