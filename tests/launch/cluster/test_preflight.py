"""Every lack of a host is found before a launch, with the host's name and the way out."""

import os
import socket
import struct
import sys

import pytest
from agents import ROOT, fake_ssh

from launch import cli
from launch.cluster import probe
from launch.cluster.hosts import Host
from launch.cluster.job import Job
from launch.cluster.judge import judge
from launch.cluster.preflight import Probe, others_of, preflight, require_ready
from pipeline.errors import ConfigError

HOSTS = (Host("127.0.0.1", (0,)), Host("127.0.0.2", (0, 1)))
ENV = {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
ABOUT = dict(
    python="3.11.2",
    packages={"torch": "2.12.1"},
    gpus=None,
    own_name_is_loopback=False,
    interface="eth0",
    address="10.0.0.2",
)
LATER = dict(time=100.0, early=99.9, late=100.1, reached="", others={"127.0.0.1": ""}, sees="")


def job(**changes) -> Job:
    return Job(**{**dict(train=(), folder=str(ROOT), hosts=HOSTS, env=ENV), **changes})


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """A program `ssh` on PATH; returns its file."""
    folder = fake_ssh(tmp_path)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder / "ssh"


def test_hosts_that_are_ready_say_so_and_leave_no_file(ssh, tmp_path):
    report = preflight(job(output=str(tmp_path / "runs/x")))
    require_ready(report)
    names = {finding.name for finding in report.findings}
    for part in ("ssh", "packages", "network", "other hosts", "clock", "output"):
        assert {f"{host.name}: {part}" for host in HOSTS} <= names or part == "network"
    assert report.port is not None and not list((tmp_path / "runs").iterdir())
    with socket.create_server(("", report.port)):
        pass  # it is free again


def test_every_host_of_a_few_tries_every_other_one_and_of_many_the_next(ssh):
    names = [f"127.0.0.{number}" for number in range(1, 5)]
    report = preflight(job(hosts=tuple(Host(name, (0,)) for name in names)))
    details = {finding.name: finding.detail for finding in report.findings}
    assert [details[f"{name}: other hosts"] for name in names] == ["3 reached"] * 4
    many = [str(number) for number in range(100)]
    tried = {name: others_of(name, many) for name in many}
    assert all(len(others) == 32 and name not in others for name, others in tried.items())
    assert tried["99"] == many[:32]


def test_hosts_of_which_one_pair_is_cut_name_it(ssh, monkeypatch):
    """The other side of the port that host 3 is told of host 2 is nobody."""
    ask = Probe.ask

    def cut(self, question):
        if self.host == "127.0.0.3" and "others" in question:
            with socket.create_server(("127.0.0.1", 0)) as gone:
                question["others"]["127.0.0.2"] = gone.getsockname()[:2]
        ask(self, question)

    monkeypatch.setattr(Probe, "ask", cut)
    with pytest.raises(ConfigError) as told:
        require_ready(preflight(job(hosts=(*HOSTS, Host("127.0.0.3", (0,))))))
    assert "127.0.0.3: other hosts: not reached: 127.0.0.2: " in str(told.value)
    assert str(told.value).count("other hosts") == 1 and "GLOO_SOCKET_IFNAME" in str(told.value)


def test_a_port_that_is_taken_is_said(ssh):
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match="127.0.0.1: master port: .*\n *-> give another --master-port"):
            require_ready(preflight(job(master_port=port)))


def test_a_host_without_a_way_in_is_named_with_what_ssh_said(ssh):
    ssh.write_text(
        '#!/bin/sh\ncase "$*" in *127.0.0.2*) echo "Permission denied (publickey)." >&2; exit 255;; esac\n'
        'for last; do :; done\nexec sh -c "$last"\n'
    )
    with pytest.raises(ConfigError) as told:
        require_ready(preflight(job()))
    assert "127.0.0.2: ssh: Permission denied (publickey). (status 255)" in str(told.value)
    assert "127.0.0.1: ssh" not in str(told.value)


def test_a_folder_or_python_that_is_not_there_is_named(ssh, tmp_path):
    with pytest.raises(ConfigError, match="127.0.0.2: ssh: .*nowhere"):
        require_ready(preflight(job(folder=str(tmp_path / "nowhere"))))
    with pytest.raises(ConfigError, match="127.0.0.2: ssh: .*no_python"):
        require_ready(preflight(job(python="/no_python")))


@pytest.mark.parametrize("line", ["Welcome to this host", "42", "null", "[]", "{}", '{"token": "other"}'])
def test_what_a_login_prints_is_passed_over(ssh, line):
    ssh.write_text(f"#!/bin/sh\necho '{line}'\nfor last; do :; done\nexec sh -c \"$last\"\n")
    require_ready(preflight(job()))


LACKS = [
    ("python", dict(python="3.12.1"), {}, {}),
    ("packages", dict(packages={"torch": "2.11.0"}), {}, {}),
    ("packages", dict(packages={}), {}, {}),
    ("gpus", dict(gpus=1), {}, dict(env={})),
    ("network", dict(interface=None, own_name_is_loopback=True), {}, dict(env={"DS_ACCELERATOR": "cpu"})),
    ("network", dict(address=None), {}, {}),
    ("other hosts", {}, dict(others={"127.0.0.3": "timed out", "127.0.0.1": ""}), {}),
    ("clock", {}, dict(time=107.0), {}),
    ("clock", {}, dict(time=90.0), {}),
    ("master port", {}, dict(reached="timed out"), {}),
    ("output", {}, dict(sees="No such file or directory"), {}),
    ("output", dict(writes="Permission denied"), {}, {}),
]


@pytest.mark.parametrize(("what", "about", "later", "changes"), LACKS, ids=lambda value: str(value)[:30])
def test_each_lack_is_one_finding_with_host_and_way_out(what, about, later, changes, tmp_path):
    facts = {"127.0.0.1": {**ABOUT, "port": 7, "gpus": 8}, "127.0.0.2": {**ABOUT, "gpus": 8, **about}}
    answers = {host: {**LATER, **(later if host == "127.0.0.2" else {})} for host in facts}
    found = list(judge(job(**changes), ("127.0.0.2", ""), facts, answers, str(tmp_path / "token")))
    missing = [finding for finding in found if finding.status == "missing"]
    assert [finding.name for finding in missing] == [f"127.0.0.2: {what}"]
    assert missing[0].way_out and missing[0].detail


def test_who_answers_at_the_masters_port_has_to_know_the_token():
    server = probe.listen(0, "token")
    port = server.getsockname()[1]
    assert probe.reached("127.0.0.1", port, "token") == ""
    assert probe.reached("127.0.0.1", port, "other") == "somebody else answers there"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    assert "refused" in probe.reached("127.0.0.1", port, "token")


def test_who_connects_and_breaks_off_keeps_nobody_from_the_token():
    """A scan of the ports, and one that stays connected and says nothing."""
    server = probe.listen(0, "token")
    port = server.getsockname()[1]
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    for _ in range(20):
        scan = socket.create_connection(("127.0.0.1", port))
        scan.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        scan.close()
    assert probe.reached("127.0.0.1", port, "token") == ""
    for part in (*idle, server):
        part.close()


def test_one_host_needs_no_network_between_hosts(ssh):
    report = preflight(job(hosts=HOSTS[:1], env={"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}))
    require_ready(report)


def test_a_launcher_without_ssh_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="install openssh-client"):
        preflight(job())


def test_an_interface_is_found_where_there_is_one():
    assert probe.interface_to("127.0.0.1") is None, "loopback leads to no other host"
    assert probe.interface_to("no.such.host.invalid") is None


def test_all_requirements_that_are_installed_have_a_version():
    found = probe.packages()
    assert {"dtem", "torch", "numpy", "fsspec", "deepspeed"} <= found.keys()
    assert all(found.values())


def test_doctor_looks_at_hosts_alone(ssh, tmp_path, monkeypatch, capsys):
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "executable", sys.executable)
    words = ["doctor", "--hostfile", str(tmp_path / "hosts"), "--output", str(tmp_path / "run")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "127.0.0.2: packages" in said and "torch " not in said
    assert cli.main([*words, "--exclude", "127.0.0.1@127.0.0.2"]) == 2
