"""The hosts of a launch: DeepSpeed's hostfile, `--include` and `--exclude`.

A line of a hostfile is `[USER@]HOST slots=N [port=P]`; `#` starts a comment. Names, users and ports keep to a
strict grammar, because they become arguments of ssh: none begins with `-`, none holds what a shell obeys.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import ConfigError, first_few

LARGEST_FILE = 1 << 20
MOST_SLOTS = 1024
LARGEST_PORT = 65535
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,6}", re.ASCII)


@dataclass(frozen=True)
class Host:
    """A machine and the slots (GPUs by index, or processes) that a launch uses there."""

    name: str
    slots: tuple[int, ...]
    user: str | None = None
    port: int | None = None
    """Of ssh; None leaves user and port to ssh's own configuration."""

    @property
    def first_slots(self) -> bool:
        """Whether these are the machine's first slots, which ranks take of themselves."""
        return self.slots == tuple(range(len(self.slots)))


def read_hostfile(path: str) -> list[Host]:
    """The hosts of a hostfile, in its order. Raises ConfigError that names file and line."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as err:
        raise ConfigError(f"hostfile {path}: {err.strerror}; write a line 'HOST slots=N' per host") from err
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"hostfile {path} is larger than {LARGEST_FILE} bytes; is it another file?")
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError as err:
        raise ConfigError(f"hostfile {path}: byte {err.start} is not ASCII; names of hosts are") from err
    return parse_hostfile(text, path)


def parse_hostfile(text: str, path: str = "hostfile") -> list[Host]:
    """The hosts of a hostfile's text. Raises ConfigError that names file and line."""
    hosts: list[Host] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if words := line.split("#")[0].split():
            try:
                hosts.append(_host(words))
            except ConfigError as err:
                raise ConfigError(f"{path}, line {number}: {err}") from err
    if not hosts:
        raise ConfigError(f"{path} names no host; write a line 'HOST slots=N' per host")
    _refuse_doubles(hosts, path)
    return hosts


def _host(words: list[str]) -> Host:
    user, at, name = words[0].rpartition("@")
    settings = dict(_setting(word) for word in words[1:])
    if "slots" not in settings or len(settings) != len(words) - 1:
        raise ConfigError("give each host 'slots=N' once, and 'port=P' at most once")
    return Host(
        check_name(name),
        tuple(range(settings["slots"])),
        user=check_user(user) if at else None,
        port=settings.get("port"),
    )


def _setting(word: str) -> tuple[str, int]:
    most = {"slots": MOST_SLOTS, "port": LARGEST_PORT}
    key, _, value = word.partition("=")
    if key not in most:
        raise ConfigError(f"'{word}' is neither slots=N nor port=P")
    return key, check_number(key, value, most[key])


def check_name(name: str) -> str:
    """A host name or an IP address. Raises ConfigError for anything else."""
    if len(name) <= 253 and _NAME.fullmatch(name):
        return name
    try:
        if "%" in name:
            raise ValueError("a zone would be part of a shell's word")
        return str(ipaddress.IPv6Address(name))
    except ValueError:
        way_out = "use letters, digits, '.', '-' and '_', or an IP address"
        raise ConfigError(f"'{name}' is no name of a host; {way_out}") from None


def check_user(user: str) -> str:
    """The name of a user. Raises ConfigError for anything else."""
    if not _USER.fullmatch(user):
        raise ConfigError(f"'{user}' is no name of a user; use letters, digits, '.', '-' and '_'")
    return user


def check_number(what: str, value: str, most: int) -> int:
    """A number from 1 to `most`. Raises ConfigError for anything else."""
    if not (_NUMBER.fullmatch(value) and 1 <= int(value) <= most):
        raise ConfigError(f"{what} is '{value}'; give a number from 1 to {most}")
    return int(value)


def _refuse_doubles(hosts: Iterable[Host], path: str) -> None:
    names = [host.name.lower() for host in hosts]
    if double := sorted({name for name in names if names.count(name) > 1} if len(names) < 5000 else ()):
        raise ConfigError(f"{path} names a host twice: {first_few(double)}; give each one line")


def choose(hosts: list[Host], include: str = "", exclude: str = "") -> list[Host]:
    """The hosts and slots that `--include` names, or that `--exclude` does not, in the hostfile's order.

    Both are as DeepSpeed has them: `node-a@node-b:0,2` is all of node-a, and slots 0 and 2 of node-b.
    """
    if include and exclude:
        raise ConfigError("--include and --exclude are both given; give one")
    if not include and not exclude:
        return hosts
    named = _filter(include or exclude, hosts)
    kept = []
    for host in hosts:
        slots = named.get(host.name, frozenset())
        stay = tuple(slot for slot in host.slots if (slot in slots) == bool(include))
        if stay:
            kept.append(replace(host, slots=stay))
    if not kept:
        raise ConfigError(f"--exclude {exclude} leaves no host")
    return kept


def _filter(text: str, hosts: list[Host]) -> Mapping[str, frozenset[int]]:
    """Host -> slots that a filter names."""
    known = {host.name: frozenset(host.slots) for host in hosts}
    named: dict[str, frozenset[int]] = {}
    for part in text.split("@"):
        name, colon, listed = part.partition(":")
        if name not in known:
            raise ConfigError(f"'{part}' names no host of the hostfile ({first_few(list(known))})")
        slots = known[name]
        if colon:
            words = listed.split(",")
            slots = frozenset(int(word) for word in words if _NUMBER.fullmatch(word))
            if len(slots) != len(words) or not slots <= known[name]:
                raise ConfigError(f"'{part}': {name} has slots 0 to {max(known[name])}; list some once")
        named[name] = named.get(name, frozenset()) | slots
    return named


def with_ssh(hosts: Iterable[Host], user: str | None, port: int | None) -> list[Host]:
    """The hosts with the user and port of `--ssh-user` and `--ssh-port`, where their lines name none."""
    return [replace(host, user=host.user or user, port=host.port or port) for host in hosts]


def with_processes(hosts: Iterable[Host], processes: int | None) -> list[Host]:
    """The hosts with their first slots, so many on each; None leaves all. Raises ConfigError where a host has
    fewer."""
    if processes is None:
        return list(hosts)
    for host in hosts:
        if len(host.slots) < processes:
            raise ConfigError(
                f"--nproc {processes}, but {host.name} has {len(host.slots)} slots in the hostfile"
            )
    return [replace(host, slots=host.slots[:processes]) for host in hosts]


def hostfile_of(path: str | Path | None, include: str, exclude: str) -> list[Host]:
    """The chosen hosts of a hostfile; none where no file is given."""
    if path is None:
        if include or exclude:
            raise ConfigError("--include and --exclude choose from a hostfile; give --hostfile FILE")
        return []
    return choose(read_hostfile(str(path)), include, exclude)
