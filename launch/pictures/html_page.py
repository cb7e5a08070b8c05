"""A page of samples as HTML that needs no other file, no network and no script."""

import base64
import html
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from launch.pictures.page import Page, Row, Section, sign_of
from pipeline.drawing.palette import RIGHT, WRONG
from pipeline.drawing.panels import Line, Panel, Text
from pipeline.errors import counted, printable
from pipeline.files import write_text

STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:15px/1.45 system-ui,sans-serif;color:#1a1a1a;background:#fff}
body{margin:0 auto;padding:16px;max-width:1600px}
h1{font-size:20px;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:17px;margin:28px 0 8px}
h3{font-size:13px;font-weight:600;color:#555;margin:0 0 8px;overflow-wrap:anywhere}
h4{font-size:14px;margin:0 0 4px}
p{margin:0 0 6px}
a{color:#0b57d0}
fieldset{border:0;padding:0;margin:8px 16px 0 0;display:inline-flex;gap:4px 14px;flex-wrap:wrap}
legend{float:left;margin-right:10px;font-weight:600}
label{display:inline-flex;align-items:center;gap:6px;min-height:28px}
.keys{display:flex;flex-wrap:wrap;gap:4px 16px;list-style:none;padding:0;margin:0 0 12px}
.keys i{display:inline-block;width:14px;height:14px;border:1px solid #888}
.keys i{margin-right:6px;vertical-align:-2px}
article{border-top:1px solid #ddd;padding:14px 0}
.groups{display:flex;flex-wrap:wrap;gap:14px 26px}
.cells{display:flex;flex-wrap:wrap;gap:10px}
figure{margin:0;width:144px}
figure img{width:100%;height:auto;display:block;border-radius:2px}
figcaption{font-size:13px;color:#555;overflow-wrap:anywhere}
.text{min-width:130px;max-width:290px;overflow-wrap:anywhere}
.text ul{list-style:none;padding:0;margin:0}
.text small{color:#555;font-size:13px;margin-left:4px}
.text summary{cursor:pointer;color:#555;min-height:24px}
.right{color:RIGHT}.wrong{color:WRONG}
.vh{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
body:has(#show-wrong:checked) article:not([data-wrong]){display:none}
body:has(#show-changed:checked) article:not([data-changed]){display:none}
body:has(#show-unmerged:not(:checked)) .of-unmerged{display:none}
body:has(#show-merged:not(:checked)) .of-merged{display:none}
@media(max-width:560px){body{padding:12px}figure{width:calc(50% - 5px)}}
@media(max-width:560px){.text,.group{width:100%;max-width:none}}
@media print{fieldset{display:none}}
"""


def write_html(page: Page, path: Path) -> Path:
    rows = [row for section in page.sections for row in section.rows]
    facts = "".join(f"<p>{_escaped(fact)}</p>" for fact in page.facts)
    links = " · ".join(
        f'<a href="{html.escape(quote(printable(target)))}">{_escaped(name)}</a>'
        for name, target in page.links.items()
    )
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_escaped(page.title)}</title><style>{_style()}</style></head><body>"
        f"<header><h1>{_escaped(page.title)}</h1>{facts}{f'<p>{links}</p>' if links else ''}"
        f"{_choices(rows)}</header><main>{''.join(map(_section, page.sections))}</main></body></html>"
    )
    return write_text(path, text)


def _choices(rows: Sequence[Row]) -> str:
    """Which rows and which answers are shown: the style sheet reads these inputs, and no script."""
    wrong, changed = sum(row.right is False for row in rows), sum(row.changed for row in rows)
    shown = [
        ("all", f"all {len(rows)}"),
        ("wrong", f"wrong ({wrong})"),
        ("changed", f"changed by merging ({changed})"),
    ]
    radios = "".join(_choice("radio", *own, first=own == shown[0]) for own in shown)
    boxes = "".join(_choice("checkbox", name, name, first=True) for name in ("unmerged", "merged"))
    return (
        f"<fieldset><legend>Samples</legend>{radios}</fieldset>"
        f"<fieldset><legend>Answers</legend>{boxes}</fieldset>"
    )


def _choice(kind: str, name: str, words: str, *, first: bool) -> str:
    checked = " checked" if first else ""
    return f'<label><input type="{kind}" name="{kind}" id="show-{name}"{checked}>{words}</label>'


def _section(section: Section) -> str:
    heading = section.heading or counted(len(section.rows), "image")
    keys = "".join(
        f'<li><i style="background:rgb{tuple(map(int, colour))}"></i>{_escaped(name)}</li>'
        for name, colour in section.legend.items()
    )
    legend = f'<ul class="keys">{keys}</ul>' if keys else ""
    return f"<section><h2>{_escaped(heading)}</h2>{legend}{''.join(map(_row, section.rows))}</section>"


def _row(row: Row) -> str:
    marks = " data-wrong" * (row.right is False) + " data-changed" * row.changed
    groups = "".join(
        f'<div class="group">{f"<h4>{_escaped(owner)}</h4>" if owner else ""}'
        f'<div class="cells">{"".join(map(partial(_cell, row.key), panels))}</div></div>'
        for owner, panels in row.groups
    )
    return f'<article{marks}><h3>{_escaped(row.key)}</h3><div class="groups">{groups}</div></article>'


def _cell(key: str, panel: Panel) -> str:
    content = panel.content
    if isinstance(content, Text):
        named = f"<h4>{_escaped(panel.caption)}</h4>" if panel.caption else ""
        return f'<div class="text{_of(panel.merged)}">{named}{_text(content)}</div>'
    alt = " ".join(part for part in (panel.owner, panel.caption, f"of {key}") if part)
    return (
        f'<figure class="picture{_of(panel.merged)}"><img alt="{_escaped(alt)}" width="{content.shape[1]}" '
        f'height="{content.shape[0]}" src="{_data_url(content)}"><figcaption>'
        f"{_marked(panel, panel.caption)}</figcaption></figure>"
    )


def _text(text: Text) -> str:
    answers = "".join(f"<li{_class(line)}>{_answer(line)}</li>" for line in text.answers)
    heading = _escaped(text.heading)
    people = [f"<li>{_escaped(one)}</li>" for one in text.references]
    if len(people) == 1:
        told = f"<p>{heading}: {_escaped(text.references[0])}</p>"
    else:
        told = f"<details><summary>{heading} ({len(people)})</summary><ul>{''.join(people)}</ul></details>"
    return f"<ul>{answers}</ul>{told if people else ''}"


def _answer(line: Line) -> str:
    label = f"<small>{_escaped(line.label)}</small>" if line.label else ""
    return f"<b>{_marked(line, line.text)}</b>{label}"


def _marked(shown: Line | Panel, text: str) -> str:
    """The text in green or red with its sign, where it is right or wrong."""
    if shown.right is None:
        return _escaped(text)
    said = "right" if shown.right else "wrong"
    mark = f'<span aria-hidden="true">{sign_of(shown)}</span><span class="vh">{said}: </span>'
    return f'<span class="{said}">{mark}{_escaped(text)}</span>'


def _class(line: Line) -> str:
    return "" if line.merged is None else f' class="{_of(line.merged).strip()}"'


def _of(merged: bool | None) -> str:
    return "" if merged is None else " of-merged" if merged else " of-unmerged"


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _style() -> str:
    text = STYLE.replace("\n", "")
    return text.replace("RIGHT", f"rgb{RIGHT}").replace("WRONG", f"rgb{WRONG}")


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
