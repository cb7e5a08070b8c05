"""What a host says of itself before a launch: `python -P -m launch.cluster.probe`, a conversation in lines of
JSON over standard input and output. `preflight.py` asks and judges."""

import contextlib
import ipaddress
import json
import os
import platform
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from pipeline.extras import DISTRIBUTION
from pipeline.version import description

CONNECTS_WITHIN = 10.0
LASTS = 900
"""Seconds after which this process ends, also where its launcher was lost without a word."""


def about(request: dict[str, Any]) -> dict[str, Any]:
    """Python, packages, GPUs and network of this host."""
    facts: dict[str, Any] = {"python": platform.python_version(), "packages": packages()}
    facts["gpus"] = number_of_gpus() if request["gpus"] else None
    facts["own_name_is_loopback"] = own_name_is_loopback()
    facts["interface"] = interface_to(request["peer"])
    named = request["interface"] or os.environ.get("GLOO_SOCKET_IFNAME", "")
    facts["address"] = own_address(request["peer"], named.split(",")[0])
    return facts


def packages() -> dict[str, str]:
    """Requirement of the project, if it is installed -> version; `dtem` is the version with its commit."""
    found = {"dtem": description()}
    for text in metadata.requires(DISTRIBUTION) or ():
        name = text.split(";")[0].split("[")[0].strip()
        name = name[: next((i for i, char in enumerate(name) if not (char.isalnum() or char in "._-")), None)]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def number_of_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def own_name_is_loopback() -> bool:
    """Whether gloo, which takes the address of the host's own name, would listen where no other host
    reaches it."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(socket.gethostname())).is_loopback
    except OSError:
        return True


def own_address(peer: str, interface: str) -> str | None:
    """The address where ranks of this host listen, as gloo chooses it: of the interface, if one is named; of
    the host's own name, unless that is loopback; else of the interface to `peer`, which the launcher names
    then."""
    if interface:
        families = (socket.AF_INET, socket.AF_INET6)
        own = [part for part in psutil.net_if_addrs().get(interface, ()) if part.family in families]
        return own[0].address if own else None
    return _address_to(peer) if own_name_is_loopback() else socket.gethostbyname(socket.gethostname())


def _address_to(peer: str) -> str | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as way:
            way.connect(address)  # sends nothing
            return way.getsockname()[0]
    except OSError:
        return None


def interface_to(peer: str) -> str | None:
    """The network interface from which this host reaches another; None where it knows no such host."""
    if (own := _address_to(peer)) is None:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(part.address.split("%")[0] == own for part in addresses):
            return None if ipaddress.ip_address(own).is_loopback else name
    return None


def listen(port: int, token: str) -> socket.socket:
    """A server that says the token to who connects, for the time of the conversation. port: 0 takes a free
    one."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    server = socket.create_server(("", port), family=family, dualstack_ipv6=both)

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=_say_token, args=(client, token), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server


def _say_token(client: socket.socket, token: str) -> None:
    with client, contextlib.suppress(OSError):  # anybody may connect, and break off
        client.settimeout(CONNECTS_WITHIN)
        client.sendall(token.encode())
        client.shutdown(socket.SHUT_WR)
        client.recv(1)  # the other side closes first, so that the port stays free here


def reached(address: str, port: int, token: str) -> str:
    """Empty where the port of another host answers with the token, or what goes wrong."""
    try:
        with socket.create_connection((address, port), timeout=CONNECTS_WITHIN) as way:
            said = b""
            while part := way.recv(256):
                said += part
    except OSError as err:
        return str(err)
    return "" if said == token.encode() else "somebody else answers there"


def all_reached(places: dict[str, tuple[str, int]], token: str) -> dict[str, str]:
    """Name -> as `reached` says. places: name -> address and port."""
    with ThreadPoolExecutor(max(1, len(places))) as threads:
        troubles = threads.map(lambda place: reached(place[0], place[1], token), places.values())
        return dict(zip(places, troubles, strict=True))


def sees(path: Path, token: str) -> str:
    """Empty where the file holds the token, or what goes wrong."""
    try:
        return "" if path.read_text() == token else f"{path} holds something else"
    except OSError as err:
        return err.strerror or str(err)


def converse() -> None:
    """Two questions and their answers; ends with standard input, and takes its file with it."""
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(1))
    signal.alarm(LASTS)
    request = json.loads(sys.stdin.readline())
    token, file = request["token"], Path(request["file"]) if request["file"] else None
    answer = {"token": token} | about(request)
    writes = file if request["first"] else None
    try:
        answer |= {"port": None, "trouble": ""}
        try:
            answer["port"] = listen(request["port"], token).getsockname()[1]
        except OSError as err:
            answer["trouble"] = str(err)
        if writes:
            answer["writes"] = write(writes, token)
        say(answer)
        if line := sys.stdin.readline():
            second = json.loads(line)
            say(
                {
                    "token": token,
                    "time": time.time(),
                    "reached": reached(request["master"], second["port"], token) if second["port"] else "",
                    "others": all_reached(second["others"], token),
                    "sees": sees(file, token) if file else "",
                }
            )
            sys.stdin.readline()
    finally:
        if writes:
            writes.unlink(missing_ok=True)


def write(path: Path, token: str) -> str:
    """Empty where the file could be written, or what goes wrong."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x") as file:
            file.write(token)
    except OSError as err:
        return err.strerror or str(err)
    return ""


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    converse()
