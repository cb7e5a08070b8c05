"""The report of runs as one HTML page: no other file, no network, no script. The page's policy forbids what
is not of it."""

import base64
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from launch.report.words import metric_words, policy_words, task_words
from launch.run_report.classes import classes_of
from launch.run_report.curves import curves, score_words, sweeps, unit_of
from launch.run_report.evaluations import Evaluation
from launch.run_report.markup import page, table, text
from launch.run_report.read import RunFacts
from pipeline.redact import redacted

HIDDEN = ("PTB",)
"""Figures among the scores that say how others were made."""


def report(runs: Sequence[RunFacts]) -> str:
    names = _names(runs)
    title = f"Report of {names[0]}" if len(runs) == 1 else f"Report of {len(runs)} runs"
    numbers = count()
    sections = {
        "Scores": _scores(runs, names),
        "Classes": _classes(runs, names),
        "Curves": curves(runs, names, numbers),
        "Sweeps": sweeps(runs, names, numbers),
        "Pictures": _pictures(runs, names),
        "Config": _configs(runs, names),
        "To repeat it": _repeat(runs, names),
    }
    return page(title, ", ".join(str(run.folder) for run in runs), sections)


def _names(runs: Sequence[RunFacts]) -> list[str]:
    """The names of the runs; with the folder where two have the same."""
    own = [run.name for run in runs]
    return [
        f"{name} ({run.folder})" if own.count(name) > 1 else name for name, run in zip(own, runs, strict=True)
    ]


def _scores(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    metrics = dict.fromkeys(name for run in runs for name in run.series if _is_score(name))
    lasts = [
        max((run.series[name][-1][0] for name in metrics if name in run.series), default=-1) for run in runs
    ]
    rows = [["step", *(str(last) if last >= 0 else "n/a" for last in lasts)]] if metrics else []
    for metric in metrics:
        unit, cells = unit_of(runs, metric), []
        for run, last in zip(runs, lasts, strict=True):
            step, value = run.series.get(metric, [(last, None)])[-1]
            cells.append(_figure(value, unit) + (f" (step {step})" if step != last else ""))
        rows.append([score_words(runs, metric), *cells])
    told = "The last validation while training"
    parts = [table(told, ["score", *names], rows, numbers=1)] if rows else []
    for label, run in zip(names, runs, strict=True):
        if found := _evaluated(run):
            parts.append(f"<h3>{text(label)}</h3>{found}" if len(runs) > 1 else found)
    return "".join(parts)


def _is_score(name: str) -> bool:
    return name.startswith("val/") and not name.endswith(HIDDEN)


def _evaluated(run: RunFacts) -> str:
    """A table with a column for each evaluation that was saved."""
    found = run.evaluations
    about = [name for name in ("split", "policy", "step", "weights", "precision") if found]
    rows = [[name, *(_said(own, name) for own in found)] for name in about]
    scores = [
        {(own.task, metric): value for own in one.tasks for metric, value in own.scores.items()}
        for one in found
    ]
    for task, metric in dict.fromkeys(key for own in scores for key in own if key[1] not in HIDDEN):
        unit = run.units.get(task, {}).get(metric, "")
        cells = [_figure(own.get((task, metric)), unit) for own in scores]
        rows.append([f"{task_words(task)}: {metric_words(metric, unit)}", *cells])
    return (
        table("Evaluations that were saved", ["score", *(own.file for own in found)], rows, numbers=1)
        if rows
        else ""
    )


def _said(evaluation: Evaluation, name: str) -> str:
    value = evaluation.about[name]
    return policy_words(value) if name == "policy" and value else value


def _figure(value: float | None, unit: str) -> str:
    return "n/a" if value is None else f"{100 * value:.2f}" if unit == "%" else f"{value:.4g}"


def _classes(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    parts = []
    for label, run in zip(names, runs, strict=True):
        for evaluation in run.evaluations:
            if found := classes_of(evaluation):
                about = f"{evaluation.about['split']} split, policy {_said(evaluation, 'policy')}"
                parts.append(f"<h3>{text(f'{label}: {evaluation.file}, {about}')}</h3>{found}")
    return "".join(parts)


def _pictures(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    parts = []
    for label, run in zip(names, runs, strict=True):
        figures = "".join(
            f'<figure><img alt="{text("; ".join(own.words))}" src="data:image/png;base64,'
            f'{base64.b64encode(own.path.read_bytes()).decode()}"><figcaption><b>{text(own.task)}, '
            f"{text(own.key)}</b><br>{'<br>'.join(map(text, own.words))}</figcaption></figure>"
            for own in run.pictures
        )
        parts.append(f'<h3>{text(label)}</h3><div class="charts">{figures}</div>' if figures else "")
    return "".join(parts)


def _configs(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    flat = [dict(_flat(redacted(run.config))) for run in runs]
    keys = list(dict.fromkeys(key for own in flat for key in own))
    differing = [key for key in keys if len({own.get(key, "") for own in flat}) > 1]
    rows = [[key, *(own.get(key, "") for own in flat)] for key in differing]
    parts = [table("What differs between the runs", ["setting", *names], rows)] if rows else []
    for label, own in zip(names, flat, strict=True):
        whole = table(
            f"Resolved settings of {label}",
            ["setting", "value"],
            [[key, value] for key, value in own.items()],
        )
        parts.append(f"<details><summary>All settings of {text(label)}</summary>{whole}</details>")
    return "".join(parts)


def _repeat(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    parts = []
    for label, run in zip(names, runs, strict=True):
        folder = str(run.folder)
        again = [
            f"dtem train {folder}/config.json --set output=runs/again",
            f"dtem evaluate {folder} --out {folder}/evaluation.json",
        ]
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
            f"<h3>{text(label)}</h3>"
            f'<pre tabindex="0" aria-label="commands">{chr(10).join(map(text, again))}</pre>'
            + (table(f"Starts of {label}", ["time", "from step", "command", "commit"], rows) if rows else "")
            + "".join(f"<p>{text(line)}</p>" for line in told)
        )
    return "".join(parts)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)
