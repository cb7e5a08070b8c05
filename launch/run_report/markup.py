"""The markup of a report: its style, its texts and its tables. All that comes from data is escaped."""

import html
from collections.abc import Mapping, Sequence

from pipeline.errors import printable
from pipeline.redact import without_secrets

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff}
body{margin:0 auto;padding:20px;max-width:1180px}
h1{font-size:26px;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:20px;margin:36px 0 10px;padding-top:10px;border-top:1px solid #d5d5d5}
h3{font-size:16px;margin:18px 0 6px;overflow-wrap:anywhere}
h4{font-size:15px;margin:14px 0 4px;overflow-wrap:anywhere}
figure h3{font-size:14px;margin:0 0 4px}
p{margin:0 0 8px;overflow-wrap:anywhere}
a{color:#0b57d0}
nav ul,.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:4px 18px}
.legend{margin:2px 0 0;font-size:14px}
.charts{display:grid;gap:24px;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr))}
.beside{display:flex;flex-wrap:wrap;gap:12px 40px;align-items:flex-start}
.beside>*{min-width:0;max-width:100%}
figure{margin:0;min-width:0}
figure img{max-width:100%;height:auto;display:block;image-rendering:pixelated}
figcaption{font-size:14px;color:#444;overflow-wrap:anywhere}
li{overflow-wrap:anywhere}
.chart{width:100%;height:auto;display:block}
.chart text{font-size:12px;fill:#444}
.chart .grid{stroke:#e4e4e4}
.wide{overflow-x:auto;margin:0 0 8px}
table{border-collapse:collapse;font-size:15px}
.told{color:#444;font-size:15px;margin:10px 0 2px}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid #e4e4e4;vertical-align:top}
thead th{vertical-align:bottom}
tbody th{font-weight:500}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{display:inline-block;width:84px;height:10px;background:#ececec}
.bar i{display:block;height:100%;background:#0072b2}
.matrix{font-size:13px}
.matrix th,.matrix td{padding:3px 5px;border:1px solid #fff}
.matrix tbody th{white-space:nowrap;max-width:150px;overflow:hidden;text-overflow:ellipsis}
.matrix td{text-align:right;min-width:30px;font-variant-numeric:tabular-nums}
.matrix thead th+th:not(.n){writing-mode:vertical-rl;transform:rotate(180deg);font-weight:500}
.matrix thead th+th:not(.n){max-height:130px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
pre{background:#f4f4f4;padding:10px;overflow-x:auto;font-size:14px;margin:0 0 8px}
summary{cursor:pointer;min-height:28px}
:focus-visible{outline:3px solid #0b57d0;outline-offset:2px}
@media(max-width:560px){body{padding:12px}
.chart text{font-size:16px}
}
"""


class Markup(str):
    """What is markup already."""


def text(content: str) -> str:
    # a surrogate alone, as JSON may hold, has no bytes
    return html.escape(printable(without_secrets(content))).encode("utf-8", "replace").decode()


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int | None = None
) -> str:
    """A table that scrolls sideways where it is wide. numbers: the first column of numbers, which stand to
    the right; None: there are none."""

    def align(i: int) -> str:
        return ' class="n"' if numbers is not None and i >= numbers else ""

    head = "".join(f'<th scope="col"{align(i)}>{text(name)}</th>' for i, name in enumerate(columns))
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(f"<td{align(i)}>{_cell(cell)}</td>" for i, cell in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    return scrolled(
        caption,
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
    )


def scrolled(name: str, content: str) -> str:
    """Below its name what scrolls sideways by itself, by the keyboard too."""
    named = text(name)
    return (
        f'<div><p class="told">{named}</p><div class="wide" tabindex="0" role="group" aria-label="{named}">'
        f"{content}</div></div>"
    )


def _cell(content: str) -> str:
    return content if isinstance(content, Markup) else text(content)


def page(title: str, told: str, sections: Mapping[str, str]) -> str:
    """A whole page. told: below the title. sections: heading -> its markup; those without are left out."""
    shown = {name: content for name, content in sections.items() if content}
    links = "".join(f'<li><a href="#s{i}">{text(name)}</a></li>' for i, name in enumerate(shown))
    body = "".join(
        f'<section aria-labelledby="s{i}"><h2 id="s{i}">{text(name)}</h2>{content}</section>'
        for i, (name, content) in enumerate(shown.items())
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv='
        f'"Content-Security-Policy" content="{POLICY}"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{text(title)}</title>'
        f"<style>{STYLE}</style></head><body><header><h1>{text(title)}</h1>"
        f"<p>{text(told)}</p>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main></body></html>\n'
    )
