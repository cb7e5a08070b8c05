"""What private servers ask for: headers of the environment, or the names and passwords of a netrc file.

They are sent to their own host alone, also where it sends a request on, and never without encryption, but to
this machine. They stand in no location, so no config, log or run folder has them.
"""

import base64
import json
import netrc
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import ConfigError

VARIABLE = "DTEM_HTTP_CREDENTIALS"
"""JSON: {HOST or HOST:PORT: a token, or {header: value}}."""
_HERE = {"localhost", "127.0.0.1", "::1"}

Headers = Mapping[str, str]


def headers_for(url: str) -> Headers:
    """The headers that let in at a URL of http or https; none where no credentials are known, or the way is
    not encrypted. Raises ConfigError for credentials that do not read."""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _HERE:
        return {}
    return _known_for(parts.hostname or "", parts.port)


def refuse_unencrypted(url: str) -> None:
    """Raises ConfigError for a URL of http whose host has credentials, which anyone on the way could read."""
    parts = urlsplit(url)
    if (
        parts.scheme == "http"
        and parts.hostname not in _HERE
        and _known_for(parts.hostname or "", parts.port)
    ):
        raise ConfigError(
            f"{url}: there are credentials for {parts.hostname}, and http is not encrypted; give https://, "
            f"or take the host out of {VARIABLE} and netrc"
        )


def _known_for(host: str, port: int | None) -> Headers:
    given = _of_environment(os.environ.get(VARIABLE, ""))
    for name in (f"{host}:{port}", host):
        if name in given:
            return given[name]
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return {}
    return _of_netrc(path, changed).get(host, {})


@lru_cache(maxsize=4)
def _of_environment(text: str) -> dict[str, Headers]:
    try:
        given = json.loads(text or "{}")
        return {host: _headers(value) for host, value in given.items()}
    except (ValueError, AttributeError):
        # without the cause, whose message could hold a secret
        raise ConfigError(
            f'{VARIABLE} does not read; give JSON such as {{"data.example.org": "TOKEN"}}, or {{"HOST": '
            '{"HEADER": "VALUE"}}'
        ) from None


def _headers(value: object) -> Headers:
    if isinstance(value, str):
        value = {"Authorization": f"Bearer {value}"}
    if not isinstance(value, dict) or not all(
        isinstance(text, str) and text.isprintable() and text for pair in value.items() for text in pair
    ):
        raise ValueError
    return value


@lru_cache(maxsize=4)
def _of_netrc(path: Path, changed: int) -> dict[str, Headers]:
    """By host. A `default` entry, which would go to any server, is not used."""
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (netrc.NetrcParseError, OSError, ValueError):
        raise ConfigError(
            f"{path} does not read as a netrc file; mend it, or name another by $NETRC"
        ) from None
    return {
        host: _basic(login, password) for host, (login, _, password) in hosts.items() if host != "default"
    }


def _basic(login: str, password: str) -> Headers:
    return {"Authorization": f"Basic {base64.b64encode(f'{login}:{password}'.encode()).decode()}"}
