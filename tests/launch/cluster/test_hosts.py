"""A hostfile gives hosts or one ConfigError. What it gives can be an argument of ssh, and is nothing that a
shell or ssh would obey."""

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.cluster.hosts import (
    Host,
    choose,
    hostfile_of,
    parse_hostfile,
    read_hostfile,
    with_processes,
    with_ssh,
)
from launch.cluster.ssh import ssh_command
from pipeline.errors import ConfigError

TWO = [Host("node-a", (0, 1, 2)), Host("node-b", (0, 1))]
HOSTILE = [
    "-oProxyCommand=touch${IFS}X slots=1",
    "-oProxyCommand=x@node slots=1",
    "$(touch X) slots=1",
    "node;touch slots=1",
    "node`touch` slots=1",
    "user;x@node slots=1",
    "-l@node slots=1",
    "a@b@node slots=1",
    "@node slots=1",
    "node@ slots=1",
    "no de slots=1",
    "node slots=-1",
    "node slots=1e3",
    "node slots=٣",
    "node slots=0",
    "node slots=99999999999",
    "node slots=1 slots=2",
    "node slots=1 port=0",
    "node slots=1 port=65536",
    "node slots=1 gpus=2",
    "node",
    "node:22 slots=1",
    "fe80::1%eth0;x slots=1",
    "node..b slots=1",
    "node- slots=1",
    "../node slots=1",
    "nöde slots=1",
    "a" * 64 + " slots=1",
    "node\0 slots=1",
    "node slots=1\nnode slots=2",
    "node slots=1\nNODE slots=2",
    "",
    "# only a comment",
]
SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text)[:40])
def test_a_line_that_is_no_host_is_refused(text, tmp_path):
    with pytest.raises(ConfigError):
        parse_hostfile(text)
    path = tmp_path / "hosts"
    path.write_bytes(text.encode())
    with pytest.raises(ConfigError):
        read_hostfile(str(path))


def test_lines_are_read_with_user_port_comment_and_addresses():
    text = "# all\nroot@node-a slots=2 port=2222  # first\n\n10.0.0.7 slots=1\nfe80::1 slots=3\n"
    assert parse_hostfile(text) == [
        Host("node-a", (0, 1), user="root", port=2222),
        Host("10.0.0.7", (0,)),
        Host("fe80::1", (0, 1, 2)),
    ]


def test_the_error_names_file_and_line(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("node-a slots=1\n-x slots=1\n")
    with pytest.raises(ConfigError, match=rf"{path}, line 2: '-x' is no name of a host"):
        read_hostfile(str(path))
    with pytest.raises(ConfigError, match="No such file"):
        read_hostfile(str(tmp_path / "nowhere"))


words = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["node", "slots=1", "root@node", "port=22", "-oX", "$(x)", "10.0.0.1", "::1", "a@b", "slots=", "#"]
)


@given(st.lists(words, max_size=8).map(" ".join) | st.text(max_size=60))
def test_any_text_gives_safe_hosts_or_a_config_error(text):
    try:
        hosts = parse_hostfile(text)
    except ConfigError:
        return
    for host in hosts:
        assert SAFE.fullmatch(host.name) and (host.user is None or SAFE.fullmatch(host.user))
        assert host.slots and (host.port is None or 0 < host.port < 65536)


@given(st.text(max_size=40).filter(lambda text: "\0" not in text))
def test_whatever_the_folder_the_shell_of_a_host_gets_it_as_one_word(folder):
    argv = ssh_command(Host("node", (0,), user="me", port=7), "/a b/python", "m", folder, "x;y")
    assert argv[-3:-1] == ["--", "node"] and argv[-7:-3] == ["-l", "me", "-p", "7"]
    words = ["cd", folder, "&&", "exec", "env", "PYTHONPATH=x;y", "/a b/python", "-P", "-m", "m"]
    assert shlex.split(argv[-1]) == words


@pytest.mark.parametrize(
    ("include", "exclude", "slots"),
    [
        ("", "", {"node-a": (0, 1, 2), "node-b": (0, 1)}),
        ("node-b", "", {"node-b": (0, 1)}),
        ("node-a:0,2@node-b", "", {"node-a": (0, 2), "node-b": (0, 1)}),
        ("", "node-a", {"node-b": (0, 1)}),
        ("", "node-a:1@node-b:0", {"node-a": (0, 2), "node-b": (1,)}),
    ],
)
def test_include_and_exclude_choose_hosts_and_slots(include, exclude, slots):
    chosen = choose(TWO, include, exclude)
    assert {host.name: host.slots for host in chosen} == slots
    assert all(host.first_slots == (host.slots in ((0, 1, 2), (0, 1), (0,))) for host in chosen)


@pytest.mark.parametrize(
    ("include", "exclude"),
    [("a", ""), ("node-a:3", ""), ("node-a:x", ""), ("node-a:0,0", ""), ("node-a:", ""), ("node-a", "node-b")]
    + [("", "node-a@node-b"), ("node-a@", "")],
)
def test_a_choice_that_names_nothing_is_refused(include, exclude):
    with pytest.raises(ConfigError):
        choose(TWO, include, exclude)


def test_a_choice_needs_a_hostfile():
    assert hostfile_of(None, "", "") == []
    with pytest.raises(ConfigError, match="--hostfile"):
        hostfile_of(None, "node-a", "")


def test_processes_are_the_first_slots_and_not_more_than_there_are():
    assert with_processes(TWO, None) == TWO
    assert [host.slots for host in with_processes(TWO, 2)] == [(0, 1), (0, 1)]
    with pytest.raises(ConfigError, match="node-b has 2 slots"):
        with_processes(TWO, 3)


def test_the_line_of_a_host_has_the_last_word_on_user_and_port():
    hosts = with_ssh([Host("a", (0,), user="x", port=7), Host("b", (0,))], "me", 22)
    assert [(host.user, host.port) for host in hosts] == [("x", 7), ("me", 22)]
