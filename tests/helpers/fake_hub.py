"""A hub on this machine that huggingface_hub and timm talk to as to the real one: repositories with commits,
branches and files."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import huggingface_hub.constants as constants
import pytest

Files = dict[str, bytes]


class Hub:
    """What the hub holds. asked: `METHOD path` of each request."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        """Repository -> commit -> its files; the newest commit comes last."""
        self.refs: dict[str, dict[str, str]] = {}
        """Repository -> branch -> commit."""
        self.asked: list[str] = []
        self.sizes: dict[str, int] = {}
        """File -> bytes that the hub claims it has."""
        self.after: dict[str, Callable[[], object]] = {}
        """File -> what happens once it was fetched."""
        self.url = ""

    def commit(self, repository: str, files: Files, branch: str = "main") -> str:
        """Adds a commit with these files beside those that the branch has. Returns its name."""
        there = self.commits.setdefault(repository, {})
        before = there.get(self.refs.setdefault(repository, {}).get(branch, ""), {})
        name = hashlib.sha1(f"{repository} {len(there)}".encode()).hexdigest()
        there[name] = before | files
        self.refs[repository][branch] = name
        return name

    def add_folder(self, repository: str, folder: Path) -> str:
        return self.commit(repository, {path.name: path.read_bytes() for path in folder.iterdir()})

    def files(self, repository: str) -> Files:
        """The files of the newest commit."""
        return list(self.commits[repository].values())[-1]


@contextmanager
def running(cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for the real one while the context is open. cache: folder of its
    cache."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # a client may close its connection when it pleases
    server.handle_error = lambda *_: None
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NO_PROXY", "127.0.0.1")
            place = "/{repo_id}/resolve/{revision}/{filename}"
            for name, value in {
                "ENDPOINT": hub.url,
                "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + place,
                "HF_HUB_CACHE": str(cache),
                "HF_HUB_OFFLINE": False,
            }.items():
                patch.setattr(constants, name, value)
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._resolve()

    def do_GET(self) -> None:
        self._resolve()

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        if parts == ["api", "repos", "create"]:
            given = json.loads(body)
            name = f"{given['organization'] or 'me'}/{given['name']}"
            self.hub.commits.setdefault(name, {})
            self._answer_json({"url": f"{self.hub.url}/{name}"})
        elif parts == ["api", "validate-yaml"]:
            self._answer_json({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer_json(
                {"files": [modes | {"path": file["path"]} for file in json.loads(body)["files"]]}
            )
        else:
            self._answer_json(self._committed("/".join(parts[2:4]), parts[5], body))

    def _committed(self, repository: str, branch: str, body: bytes) -> dict[str, Any]:
        entries = [json.loads(line) for line in body.decode().splitlines()]
        added = [entry["value"] for entry in entries if entry["key"] == "file"]
        files = {file["path"]: base64.b64decode(file["content"]) for file in added}
        name = self.hub.commit(repository, files, branch)
        return {"commitUrl": f"{self.hub.url}/{repository}/commit/{name}", "commitOid": name}

    def _resolve(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        owner, name, _, revision, file = [unquote(part) for part in self.path.strip("/").split("/", 4)]
        commits = self.hub.commits.get(f"{owner}/{name}")
        if commits is None:
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        commit = self.hub.refs.get(f"{owner}/{name}", {}).get(revision, revision)
        if commit not in commits:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        if file not in commits[commit]:
            return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = commits[commit][file]
        facts = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if file in self.hub.sizes:
            facts["X-Linked-Size"] = str(self.hub.sizes[file])
        self._answer(200, facts, data)

    def _answer_json(self, content: dict[str, Any]) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _answer(self, status: int, facts: dict[str, str], data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (facts | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        if self.command == "GET" and (act := self.hub.after.pop(self.path.rpartition("/")[2], None)):
            act()

    def log_message(self, *_: object) -> None:
        pass
