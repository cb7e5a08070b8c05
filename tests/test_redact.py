"""No secret reaches a file, log, message, page or record, wherever it comes from."""

import http.server
import json
import os
import subprocess
import sys
import threading
from base64 import b64encode
from functools import partial
from pathlib import Path

import forks
import pytest
from record import write_record
from textpage import page_of

from launch.pictures.html_page import write_html
from launch.saved.run import read_run
from pipeline.config.load import digest, from_plain, load_config, to_saved
from pipeline.data.shards.find import load_manifest
from pipeline.errors import ConfigError, SampleError, printable
from pipeline.redact import MARK, is_secret, redacted, without_secrets
from pipeline.train.loop import train

ROOT = Path(__file__).parents[1]
SECRET = "s3cr3t-of-mine"


@pytest.mark.parametrize(
    "name",
    "HF_TOKEN db.password apiKey APIKey AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID WANDB_API_KEY a.token "
    "client_secret credentials PRIVATE_KEY PGPASSWORD SSHPASS DB_PASS MYSQL_PWD AUTHORIZATION GITHUB_PAT "
    "AZURE_STORAGE_CONNECTION_STRING secretkey accesstoken".split(),
)
def test_a_secret_is_known_by_its_name(name):
    assert is_secret(name) and redacted({name: SECRET}) == {name: MARK}
    assert SECRET not in without_secrets(f"bad {name}={SECRET}, or {{'{name}': '{SECRET}'}}")


@pytest.mark.parametrize(
    "name",
    "PWD OLDPWD PATH pass TOKEN_FILE eos_token pad_token_id num_tokens class_token tokenizer keys keyboard "
    "output".split(),
)
def test_a_setting_is_no_secret(name):
    assert not is_secret(name)
    assert redacted({name: "text"}) == {name: "text"}
    assert without_secrets(f"{name}=text") == f"{name}=text"


@pytest.mark.parametrize(
    ("url", "left"),
    [
        (f"https://me:{SECRET}@host/x.tar", "https://***@host/x.tar"),
        (f"s3://{SECRET}@bucket/x", "s3://***@bucket/x"),
        (f"https://h/x?X-Amz-Signature={SECRET}&b=1", "https://h/x?X-Amz-Signature=***&b=1"),
        (f"https://h/x?sv=1&sig={SECRET}", "https://h/x?sv=1&sig=***"),
        (f"http://me:p@{SECRET}@host/x", "http://***@host/x"),
        (f"s3://me:p/{SECRET}@h/x", "s3://***@h/x"),
        ("https://h/x@2/y?page=1", "https://h/x@2/y?page=1"),
        ("http://h:8080/x@2/y", "http://h:8080/x@2/y"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)
def test_the_part_of_a_url_that_lets_in_is_left_out(url, left):
    assert without_secrets(url) == redacted(url) == left


def test_yes_no_and_nothing_are_no_secrets():
    plain = {"class_token": True, "password": None, "tokens": [{"token": False}]}
    assert redacted(plain) == plain
    assert without_secrets("{'token': False}, token=None") == "{'token': False}, token=None"


def test_the_value_of_a_variable_is_found_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MY_PRIVATE_KEY", "BEGIN PRIVATE\nabcdefghijkl\nEND PRIVATE")
    assert without_secrets(f"401 for {SECRET}") == f"401 for {MARK}"
    assert "abcdefghijkl" not in printable("sent BEGIN PRIVATE\nabcdefghijkl")
    assert SECRET not in str(SampleError(f"denied\n{SECRET}"))


def test_a_page_holds_none(tmp_path, monkeypatch):
    monkeypatch.setenv("API_TOKEN", SECRET)
    page = write_html(page_of(f"caption {SECRET} of https://a:{SECRET}@host/x"), tmp_path / "page.html")
    assert SECRET not in page.read_text()


def test_a_record_holds_none(tmp_path, monkeypatch):
    words = ["benchmarks/x.py", "--train", f"https://a:{SECRET}@host/x", f"options.api_key={SECRET}"]
    monkeypatch.setattr("sys.argv", words)
    write_record(tmp_path / "x.json", "a claim", [{"name": "a", "scores": {}}])
    assert SECRET not in (tmp_path / "x.json").read_text()


@pytest.fixture
def guarded(digits):
    """URL of a server that gives the digits to those who know the password, which is in the URL."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            known = self.headers["Authorization"] == f"Basic {b64encode(f'me:{SECRET}'.encode()).decode()}"
            super().do_GET() if known else self.send_error(401)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(digits)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:{SECRET}@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    assert any(asked)


def test_a_run_writes_none_and_continues(guarded, tiny_run, monkeypatch, tmp_path):
    monkeypatch.setenv("STORAGE_TOKEN", f"{SECRET}-of-the-environment")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sections = dict(data=dict(train=guarded, val=guarded), optim=dict(warmup_steps=0))
    train(tiny_run(train=dict(steps=1, save_every=1), **sections))
    folder = train(tiny_run(train=dict(steps=1, save_every=1, log_every=1), **sections))
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path
    data = json.loads((folder / "config.json").read_text())["tasks"]["digits"]["data"]
    assert data["train"] == guarded.replace(f"me:{SECRET}", MARK)
    assert read_run(folder).config.tasks["digits"].data.train == data["train"]


@pytest.fixture
def secretive(tiny_run):
    """A configuration that holds a secret."""
    options = dict(monitor=dict(api_key=SECRET, url=f"https://me:{SECRET}@host/"))
    return lambda: tiny_run(engine=dict(type="deepspeed", deepspeed=options))


def test_a_saved_config_is_not_started_from_without_its_secret(secretive, tmp_path):
    config = secretive()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_saved(config)))
    with pytest.raises(ConfigError, match="engine.deepspeed.monitor.api_key.*left out when"):
        load_config(path)
    field = "engine.deepspeed.monitor.api_key"
    assert load_config(path, [f"{field}={SECRET}"]).engine.deepspeed["monitor"]["api_key"] == SECRET


def test_another_password_is_no_other_run(secretive):
    config = secretive()
    changed = to_saved(config)
    changed["engine"]["deepspeed"]["monitor"]["api_key"] = "another"
    assert digest(config) == digest(from_plain(changed))


def test_a_place_whose_password_was_left_out_says_so():
    with pytest.raises(SampleError, match="left out"):
        load_manifest(f"https://{MARK}@host/data")


@pytest.mark.parametrize(
    "location", [f"https://me:{SECRET}@h/x?sig={SECRET}", f"https://h/x.tar?X-Amz-Signature={SECRET}"]
)
def test_a_refusal_does_not_repeat_it(location):
    with pytest.raises(SampleError) as refused:
        load_manifest(location)
    assert SECRET not in str(refused.value)


def test_commands_keep_it_from_logs_of_any_package_and_from_what_they_say():
    code = f"""
import logging, sys
from launch import cli
from launch.commands import doctor
def run(args):
    logging.getLogger("fsspec").warning("GET %s", "https://a:{SECRET}@host/x")
    raise FileNotFoundError(2, "no such file", "https://h/x?sig={SECRET}")
doctor.run = run
sys.exit(cli.main(["doctor"]))
"""
    done = forks.run("-c", code, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and SECRET not in done.stdout + done.stderr
    assert f"https://{MARK}@host/x" in done.stderr and f"sig={MARK}" in done.stderr


RAISES = """
import logging, os, sys, threading
from pipeline.redact import keep_from_logs

keep_from_logs()
logging.basicConfig()
text = os.environ["HF_TOKEN"]

def fail():
    raise RuntimeError(f"https://host/?X-Amz-Signature={text} {text}")

try:
    fail()
except RuntimeError:
    logging.exception("it failed")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


def test_no_traceback_has_a_secret():
    env = os.environ | {"HF_TOKEN": SECRET, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RAISES], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("RuntimeError: https://host") == 3
    assert SECRET not in done.stderr, done.stderr
