"""Secrets stay out of files, logs, messages and pages. They are known by the name of a setting or variable,
or by their place in a URL.

MARK takes the place of a secret. What was saved with MARK in it has to be given anew.
"""

import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from functools import cache
from types import TracebackType
from typing import Any

MARK = "***"
SHORTEST = 8
"""Characters of the shortest value of a variable that is looked for in texts; shorter ones occur in words."""
_SECRET = set(
    "password passwd passphrase secret secrets credential credentials token authorization "
    "pgpassword sshpass secretkey accesskey accesstoken".split()
)
_SHORT = {"pass", "pat", "pwd"}
"""Last words that are secrets behind another one: `DB_PASS` is one, `PWD` is not."""
_PLACES = {"file", "path", "dir", "folder", "id", "type", "name"}
"""Last words of names that say where or of which kind a secret is, but for `key_id`."""
_OF_MODELS = set(
    "bos class cls end eos image mask max num pad prefix register sep special start text unk".split()
)
"""Words before `token` in settings of models, which are no secrets."""
_PLAIN = {"true", "false", "none", "null"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_USER = re.compile(r"(?<=://)(?:[^/\s@'\"?#:]*:(?!\d*/)[^\s'\"]+|[^/\s'\"?#]+)(?=@)")
"""Up to the last @, also behind a `/` in a password, but for the path behind `host:port/`."""
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
    if words[-1:] in (["key"], ["apikey"]) or words[-2:] in (["key", "id"], ["connection", "string"]):
        return True
    if len(words) > 1 and words[-1] in _SHORT:
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
    """From now on no log message and no traceback of this process, and of those that it forks, holds a
    secret."""
    logging.setLogRecordFactory(_Record)
    sys.excepthook = _print_error
    threading.excepthook = _print_error_of_thread


def _print_error(kind: type[BaseException], err: BaseException | None, trace: TracebackType | None) -> None:
    if sys.stderr is not None:
        sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, err, trace))))


def _print_error_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        _print_error(args.exc_type, args.exc_value, args.exc_traceback)


class _Record(logging.LogRecord):
    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        if self.exc_info and self.exc_info[0] is not None:
            # a formatter takes this text, where there is one
            self.exc_text = without_secrets("".join(traceback.format_exception(*self.exc_info)).rstrip())

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
