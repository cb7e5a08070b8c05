"""Secrets stay out of files, logs, messages and pages. They are known by the name of a setting or variable,
or by their place in a URL.

MARK takes the place of a secret. What was saved with MARK in it has to be given anew.
"""

import logging
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

MARK = "***"
SHORTEST = 8
"""Characters of the shortest value of a variable that is looked for in texts; shorter ones occur in words."""
_SECRET = {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "token"}
_PLACES = {"file", "path", "dir", "folder", "id", "type", "name"}
"""Last words of names that say where or of which kind a secret is, but for `key_id`."""
_OF_MODELS = set(
    "bos class cls end eos image mask max num pad prefix register sep special start text unk".split()
)
"""Words before `token` in settings of models, which are no secrets."""
_PLAIN = {"true", "false", "none", "null"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_USER = re.compile(r"(?<=://)[^/\s@'\"?#]+(?=@)")
_QUERY = re.compile(
    r"([?&][^=&\s?]*(?:token|key|keyid|password|secret|signature|credential|sig|auth)=)[^&\s'\"]+", re.I
)
_PAIR = re.compile(
    r"(?<![\w.-])(?P<name>-{0,2}[A-Za-z_][\w.-]*+)(?P<link>=['\"]?|['\"]: ?['\"]?)"
    r"(?P<value>(?<=['\"])[^'\"]+|[^\s'\",;&)}\]]+)"
)


@cache
def is_secret(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret, by its words: `HF_TOKEN`, `db.password`,
    `apiKey`. `eos_token` and `num_tokens` are settings of models, `TOKEN_FILE` is a place."""
    words = [word.lower() for word in _WORD.findall(name.rpartition(".")[2])]
    if words[-1:] in (["key"], ["apikey"]) or words[-2:] == ["key", "id"]:
        return True
    found = [place for place, word in enumerate(words) if word in _SECRET]
    of_model = [
        place for place in found if words[place] == "token" and place and words[place - 1] in _OF_MODELS
    ]
    return len(found) > len(of_model) and words[-1] not in _PLACES


def redacted(value: Any, name: str = "") -> Any:
    """Plain data with MARK for values of secret names, and for the parts of URLs that let in. Yes, no and
    nothing are no secrets. name: that of the value.
    """
    if isinstance(value, Mapping):
        return {key: redacted(item, name if is_secret(name) else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, name) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if is_secret(name):
        return MARK
    return _without_parts_of_urls(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """The text with MARK for the parts of URLs that let in, for what stands behind a secret name
    (`HF_TOKEN=...`; `key=` alone is usual in sentences), and for the values of environment variables of
    such names."""
    for value in _of_environment():
        text = text.replace(value, MARK)
    return _PAIR.sub(_pair, _without_parts_of_urls(text))


def keep_from_logs() -> None:
    """From now on no log message of this process, and of those that it forks, holds a secret."""
    logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return without_secrets(super().getMessage())


def _without_parts_of_urls(text: str) -> str:
    return _QUERY.sub(rf"\g<1>{MARK}", _USER.sub(MARK, text)) if "://" in text else text


def _of_environment() -> list[str]:
    lines = (line for name, value in os.environ.items() if is_secret(name) for line in value.splitlines())
    return sorted((line for line in lines if len(line) >= SHORTEST), key=len, reverse=True)


def _pair(match: re.Match[str]) -> str:
    name = match["name"].rpartition(".")[2]
    secret = is_secret(name) and name != "key" and match["value"].lower() not in _PLAIN
    return f"{match['name']}{match['link']}{MARK}" if secret else match[0]
