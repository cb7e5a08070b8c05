"""Lines of a hostfile, filters of hosts and variables, which `dtem launch` hands to ssh and other hosts."""

import shlex
from collections.abc import Iterator
from functools import partial

from launch.cluster.environment import variables
from launch.cluster.hosts import Host, check_user, choose, read_hostfile
from launch.cluster.job import Job
from launch.cluster.ssh import ssh_command
from payloads import Payload, Sandbox

LINES = [
    "-oProxyCommand=touch${IFS}CANARY slots=1",
    "-F/dev/stdin slots=1",
    "a -oProxyCommand=x slots=1",
    "$(SHELL) slots=1",
    "`SHELL` slots=1",
    "a;SHELL slots=1",
    "a|SHELL slots=1",
    "a&&SHELL slots=1",
    "a>CANARY slots=1",
    "a slots=$(SHELL)",
    "a slots=1;SHELL",
    "a slots=1 port=22;SHELL",
    "a slots=1 port=-oProxyCommand=x",
    "-l@a slots=1",
    "-oX=y@a slots=1",
    "$(SHELL)@a slots=1",
    "root;SHELL@a slots=1",
    "a@b@c slots=1",
    "@a slots=1",
    "a@ slots=1",
    "fe80::1%$(SHELL) slots=1",
    "[::1] slots=1",
    "a slots=-1",
    "a slots=0",
    "a slots=999999999999",
    "a slots=\u0663",
    "a slots=1 slots=2",
    "a port=22",
    "a",
    "slots=1",
    "a slots=1\na slots=1",
    "a slots=1 env=PYTHONPATH=/x",
    "a\0b slots=1",
    "a\x1b]0;pwn\x07 slots=1",
    "\u202ea slots=1",
    "{a,b} slots=1",
    "~ slots=1",
    "../a slots=1",
    "a/../b slots=1",
    "ssh://a slots=1",
    "a" * 300 + " slots=1",
    "",
    "# nothing",
]
FILTERS = [
    "b",
    "a:9",
    "a:-1",
    "a:0,0",
    "a:$(SHELL)",
    "a:",
    "@",
    "-oProxyCommand=x",
    "a:0@`SHELL`",
    "a\n",
    "*",
]
VARIABLES = [
    "",
    "=x",
    "A B=x",
    "A;SHELL=x",
    "$(SHELL)=x",
    "-x=y",
    "A\n=x",
    "RANK=1",
    "A=\0",
    "\u00c4=x",
    "NOT_SET_HERE",
]
USERS = ["", "-l", "-oProxyCommand=x", "a b", "$(SHELL)", "a;SHELL", "a\n", "root@x", "\u00e9", "a" * 99]
WORDS = [
    "$(SHELL)",
    "`SHELL`",
    "; SHELL",
    "a b",
    "'",
    '"',
    "\\",
    "\n",
    "$HOME",
    "!x",
    "{a,b}",
    "*",
    "~",
    "\u202e",
    "",
]


def cases() -> Iterator[Payload]:
    for text in LINES:
        yield Payload(f"hostfile {text!r:.50}", partial(_hostfile, text))
    for text in FILTERS:
        yield Payload(f"--include {text!r}", partial(_filter, text))
    for text in VARIABLES:
        yield Payload(f"--env {text!r}", partial(_variable, text))
    for text in USERS:
        yield Payload(f"--ssh-user {text!r:.40}", partial(_user, text))
    for text in WORDS:
        yield Payload(f"word {text!r} for a host", partial(_word, text), refused=False)
    yield Payload("hostfile of bytes", _bytes)
    yield Payload("secret of --env", _secret, refused=False)


def _hostfile(text: str, sandbox: Sandbox) -> None:
    path = sandbox.folder / "hostfile"
    path.write_text(sandbox.fill(text), encoding="utf-8")
    read_hostfile(str(path))


def _bytes(sandbox: Sandbox) -> None:
    (sandbox.folder / "hostfile").write_bytes(b"\xff\xfea\0 slots=1")
    read_hostfile(str(sandbox.folder / "hostfile"))


def _filter(text: str, sandbox: Sandbox) -> None:
    choose([Host("a", (0, 1))], include=sandbox.fill(text))


def _variable(text: str, sandbox: Sandbox) -> None:
    variables([sandbox.fill(text)], {})


def _user(text: str, sandbox: Sandbox) -> None:
    check_user(sandbox.fill(text))


def _word(text: str, sandbox: Sandbox) -> None:
    """What goes through the host's shell is one word there."""
    text = sandbox.fill(text)
    command = ssh_command(Host("a", (0,)), text, "m", text, text)
    remote = shlex.split(command[-1])
    assert remote[:2] == ["cd", text] and remote[2:4] == ["&&", "exec"]
    assert text in remote[4:] and command[-3:-1] == ["--", "a"]


def _secret(sandbox: Sandbox) -> None:
    assert sandbox.shell not in str(Job(train=(), folder="/", env={"HF_TOKEN": sandbox.shell}).shown())
