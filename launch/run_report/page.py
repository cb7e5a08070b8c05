"""The report of runs as one HTML page: no other file, no network, no script. All that comes from data is
escaped, and the policy of the page forbids the rest."""

import base64
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from launch.report.words import metric_words, policy_words, task_words
from launch.run_report.chart import Line, draw
from launch.run_report.read import RunFacts
from pipeline.errors import printable
from pipeline.redact import redacted, without_secrets

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
CURVES = ("loss", "val/", "grad_norm", "lr", "samples_per_s", "data_wait")
WORDS = {
    "lr": "learning rate",
    "samples_per_s": "samples per second",
    "data_wait": "share of the time waiting for data",
    "grad_norm": "gradient norm",
    "grad_norm_model": "gradient norm, model",
    "grad_norm_embeddings": "gradient norm, embeddings",
}
STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff}
body{margin:0 auto;padding:20px;max-width:1180px}
h1{font-size:26px;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:20px;margin:36px 0 10px;padding-top:10px;border-top:1px solid #d5d5d5}
h3{font-size:16px;margin:18px 0 6px;overflow-wrap:anywhere}
figure h3{font-size:14px;margin:0 0 4px}
p{margin:0 0 8px}
a{color:#0b57d0}
nav ul,.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:4px 18px}
.legend{margin:2px 0 0;font-size:14px}
.charts{display:grid;gap:24px;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr))}
figure{margin:0;min-width:0}
figure img{max-width:100%;height:auto;display:block;image-rendering:pixelated}
figcaption{font-size:14px;color:#444;overflow-wrap:anywhere}
.chart{width:100%;height:auto;display:block}
.chart text{font-size:12px;fill:#444}
.chart .grid{stroke:#e4e4e4}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:15px}
caption{text-align:left;color:#444;padding:0 0 4px}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid #e4e4e4;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:#f4f4f4;padding:10px;overflow-x:auto;font-size:14px;margin:0 0 8px}
summary{cursor:pointer;min-height:28px}
:focus-visible{outline:3px solid #0b57d0;outline-offset:2px}
@media(max-width:560px){body{padding:12px}
.chart text{font-size:16px}
}
"""


def report(runs: Sequence[RunFacts]) -> str:
    names = _names(runs)
    title = f"Report of {names[0]}" if len(runs) == 1 else f"Report of {len(runs)} runs"
    numbers = count()
    sections = {
        "Scores": _scores(runs, names),
        "Curves": _curves(runs, names, numbers),
        "Sweeps": _sweeps(runs, names, numbers),
        "Pictures": _pictures(runs, names),
        "Config": _configs(runs, names),
        "To repeat it": _repeat(runs, names),
    }
    shown = {name: content for name, content in sections.items() if content}
    links = "".join(f'<li><a href="#s{i}">{name}</a></li>' for i, name in enumerate(shown))
    body = "".join(
        f'<section aria-labelledby="s{i}"><h2 id="s{i}">{name}</h2>{content}</section>'
        for i, (name, content) in enumerate(shown.items())
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv='
        f'"Content-Security-Policy" content="{POLICY}"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head><body><header><h1>{_text(title)}</h1>"
        f"<p>{_text(', '.join(str(run.folder) for run in runs))}</p>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main></body></html>\n'
    )


def _names(runs: Sequence[RunFacts]) -> list[str]:
    """The names of the runs; with the folder where two have the same."""
    own = [run.name for run in runs]
    return [
        f"{name} ({run.folder})" if own.count(name) > 1 else name for name, run in zip(own, runs, strict=True)
    ]


def _scores(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    metrics = dict.fromkeys(name for run in runs for name in run.series if name.startswith("val/"))
    rows = []
    for metric in metrics:
        values = [run.series.get(metric, [])[-1:] for run in runs]
        cells = [f"{value[0][1]:.4g} (step {value[0][0]})" if value else "n/a" for value in values]
        rows.append([_metric(metric), *cells])
    told = "Last validation scores, as in metrics.jsonl: shares are in [0, 1]"
    return _table(told, ["score", *names], rows) if rows else ""


def _metric(name: str) -> str:
    _, task, metric = [*name.split("/"), "", ""][:3]
    return f"{task_words(task)}: {metric_words(metric)}"


def _curves(runs: Sequence[RunFacts], names: Sequence[str], numbers: Iterator[int]) -> str:
    known = dict.fromkeys(name for run in runs for name in run.series)
    wanted = [name for part in CURVES for name in known if _is_of(name, part)]
    charts = []
    for name in dict.fromkeys(wanted):
        lines = [
            Line(label, [(step, value, value, value) for step, value in run.series[name]])
            for label, run in zip(names, runs, strict=True)
            if len(run.series.get(name, [])) > 1
        ]
        if lines:
            title = _metric(name) if name.startswith("val/") else WORDS.get(name, f"{name}, training")
            charts.append(draw(lines, title, "step", next(numbers)))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _is_of(name: str, part: str) -> bool:
    if name.endswith(("/samples", "/missing")) or (part == "loss" and name.startswith("val/")):
        return False
    return (
        name.endswith("loss") if part == "loss" else name.startswith(part) if part != "lr" else name == "lr"
    )


def _sweeps(runs: Sequence[RunFacts], names: Sequence[str], numbers: Iterator[int]) -> str:
    charts = []
    for label, run in zip(names, runs, strict=True):
        for sweep in run.sweeps:
            lines = _sweep_lines(sweep)
            if lines:
                named = f"{task_words(str(sweep.get('task')))}: {metric_words(str(sweep.get('metric')))}"
                charts.append(draw(lines, f"{label}, {named}", "MMACs per image", next(numbers)))
    told = "<p>Score against compute. A band reaches from the worst to the best run.</p>"
    return f'{told}<div class="charts">{"".join(charts)}</div>' if charts else ""


def _sweep_lines(sweep: Mapping[str, Any]) -> list[Line]:
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    points = sweep.get("points")
    for point in points if isinstance(points, list) else ():
        try:
            scores = [float(value) for value in point["scores"][sweep["metric"]]]
            x, policy = 1000 * float(point["gmacs"]), str(point["policy"])
        except (KeyError, TypeError, ValueError):
            continue
        if scores and all(map(math.isfinite, (*scores, x))):
            mean = sum(scores) / len(scores)
            found.setdefault(policy, []).append((x, mean, min(scores), max(scores)))
    return [Line(policy_words(policy), sorted(own)) for policy, own in found.items()]


def _pictures(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    parts = []
    for label, run in zip(names, runs, strict=True):
        figures = "".join(
            f'<figure><img alt="{_text("; ".join(own.words))}" src="data:image/png;base64,'
            f'{base64.b64encode(own.path.read_bytes()).decode()}"><figcaption><b>{_text(own.task)}, '
            f"{_text(own.key)}</b><br>{'<br>'.join(map(_text, own.words))}</figcaption></figure>"
            for own in run.pictures
        )
        parts.append(f'<h3>{_text(label)}</h3><div class="charts">{figures}</div>' if figures else "")
    return "".join(parts)


def _configs(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    flat = [dict(_flat(redacted(run.config))) for run in runs]
    keys = list(dict.fromkeys(key for own in flat for key in own))
    differing = [key for key in keys if len({own.get(key, "") for own in flat}) > 1]
    rows = [[key, *(own.get(key, "") for own in flat)] for key in differing]
    parts = [_table("What differs between the runs", ["setting", *names], rows)] if rows else []
    for label, own in zip(names, flat, strict=True):
        whole = _table(
            f"Resolved settings of {label}",
            ["setting", "value"],
            [[key, value] for key, value in own.items()],
        )
        parts.append(f"<details><summary>All settings of {_text(label)}</summary>{whole}</details>")
    return "".join(parts)


def _repeat(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    parts = []
    for label, run in zip(names, runs, strict=True):
        folder = str(run.folder)
        again = [f"dtem train {folder}/config.json --set output=runs/again", f"dtem evaluate {folder}"]
        rows = [
            [str(start.get(name, "")) for name in ("time", "step", "command", "commit")]
            for start in run.starts
        ]
        last = run.starts[-1] if run.starts else {}
        versions = last.get("versions")
        about = last.get("about")
        told = [str(line) for line in about] if isinstance(about, list) else []
        if isinstance(versions, dict):
            told.append("versions: " + ", ".join(f"{name} {own}" for name, own in versions.items()))
        parts.append(
            f"<h3>{_text(label)}</h3>"
            f'<pre tabindex="0" aria-label="commands">{chr(10).join(map(_text, again))}</pre>'
            + (_table(f"Starts of {label}", ["time", "from step", "command", "commit"], rows) if rows else "")
            + "".join(f"<p>{_text(line)}</p>" for line in told)
        )
    return "".join(parts)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>'
        f"{''.join(f'<td>{_text(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{_text(caption)}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _text(text: str) -> str:
    # a surrogate alone, as JSON may hold, has no bytes
    return html.escape(printable(without_secrets(text))).encode("utf-8", "replace").decode()
