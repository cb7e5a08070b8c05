"""The page of `dtem report`: what a reader of screens needs, nothing from elsewhere, and no script from
data."""

import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest

from launch.run_report.chart import Line, _ticks, draw
from launch.run_report.markup import POLICY

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects elements with their attributes and texts; asserts that each is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.ids = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for own, attributes in self.elements if own == tag]


def check(text):
    page = Page(text)
    assert page.all("html") == [{"lang": "en"}] and page.all("meta")[1]["content"] == POLICY
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]
    assert all(
        image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.all("img")
    )
    assert all(link["href"].removeprefix("#") in page.ids for link in page.all("a"))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    charts = [own for own in page.all("svg") if own.get("role") == "img"]
    assert all(set(own["aria-labelledby"].split()) <= set(page.ids) for own in charts)
    assert len(page.ids) == len(set(page.ids))
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    return page


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run without its checkpoints."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    return folder


def test_two_runs_stand_side_by_side_with_what_differs(run, tmp_path, dtem):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["optim"]["lr"] = 0.125
    (other / "config.json").write_text(json.dumps(config))
    out = tmp_path / "both.html"
    assert str(out) in dtem("report", run, other, "--out", out)
    text = out.read_text()
    page = check(text)
    differing = text.partition("What differs between the runs")[2].partition("</table>")[0]
    assert "optim.lr" in differing and "0.125" in differing and "backbone.name" not in differing
    assert "digits: top-1 accuracy" in text and [own for own in page.all("svg") if own.get("role") == "img"]
    assert f"dtem train {run}/config.json" in text and "device: " in text


def test_nothing_from_data_is_markup(run, dtem):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines += [{"step": step, f"val/{HOSTILE}/top1": 0.5} for step in (5, 6)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "[" * 100_000)
    config = json.loads((run / "config.json").read_text()) | {HOSTILE: HOSTILE, "x": {"api_key": "planted"}}
    config["log"]["name"] = HOSTILE + "\ud800"
    (run / "config.json").write_text(json.dumps(config))
    (run / "starts.jsonl").write_text(
        json.dumps({"command": HOSTILE, "versions": {HOSTILE: HOSTILE}}) + "\n7\n"
    )
    point = {"policy": HOSTILE, "gmacs": 1, "scores": {"m": [0.1, 0.3]}}
    sweep = [{"task": HOSTILE, "metric": "m", "points": [point, {}, 3]}, 5]
    (run / "sweep").mkdir(exist_ok=True)
    (run / "sweep/sweep.json").write_text(json.dumps(sweep))
    dtem("report", run)
    text = (run / "report.html").read_text()
    check(text)
    assert "<script" not in text and "planted" not in text and "&lt;script&gt;" in text


def test_figures_that_no_chart_can_show_and_a_picture_without_end_are_left_out(run, dtem):
    odd = ("1e308", "-1e308", "9" * 400, "1e999", "1e-320", "NaN")
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(f'{{"step": {100 + at}, "loss": {text}}}\n' for at, text in enumerate(odd))
        file.write(f'{{"step": {"9" * 400}, "loss": 1}}\n')
    point = '{"policy": "dtem", "gmacs": %s, "scores": {"top1": [%s]}}'
    points = ", ".join(point % pair for pair in (("1", "9" * 400), ("9" * 400, "1"), ("1e308", "0.5")))
    (run / "sweep").mkdir(exist_ok=True)
    (run / "sweep/sweep.json").write_text(f'[{{"task": "digits", "metric": "top1", "points": [{points}]}}]')
    step = run / "pictures/step_00000001"
    step.mkdir(parents=True)
    (step / "a.png").touch()
    os.truncate(step / "a.png", 1 << 40)
    told = {"task": "digits", "key": "k", "file": "a.png", "words": []}
    (step / "pictures.json").write_text(json.dumps([told]))
    dtem("report", run)
    check((run / "report.html").read_text())


def test_a_saved_evaluation_says_what_is_taken_for_what(run, trained, dtem):
    dtem("evaluate", trained, "--out", run / "evaluation.json")
    dtem("evaluate", trained, "--policy", "none", "--out", run / "evaluation_unmerged.json")
    result = json.loads((run / "evaluation.json").read_text())
    dtem("report", run)
    text = (run / "report.html").read_text()
    check(text)
    scores, matrix = result["scores"]["digits"], result["confusion"]["digits"]
    assert f'top-1 accuracy (%)</th><td class="n">{100 * scores["top1"]:.2f}' in text
    first = text.partition('<table class="matrix">')[2].partition("</table>")[0]
    for name, counts in zip(result["classes"]["digits"], matrix, strict=True):
        row = first.partition(f'<th scope="row">{name}</th>')[2].partition("</tr>")[0]
        cells = re.findall("<td[^>]*>(.*?)</td>", row)
        assert cells == [f"{100 * n / sum(counts):.0f}" if n else "" for n in counts] + [str(sum(counts))]
    assert text.count('<table class="matrix">') == 2 and "no merging" in text


def test_of_many_classes_the_page_has_the_most_frequent_confusions(run, dtem):
    many = 40
    matrix = [[9 * (i == j) + 5 * ((i, j) == (39, 7)) for j in range(many)] for i in range(many)]
    scores = {"top1": 0.5} | {f"Acc/{i}": i / many for i in range(many)}
    classes = {"digits": [HOSTILE, *(f"class {i}" for i in range(1, many))]}
    saved = {"scores": {"digits": scores}, "confusion": {"digits": matrix}, "classes": classes}
    (run / "evaluation.json").write_text(json.dumps(saved))
    dtem("report", run)
    text = (run / "report.html").read_text()
    check(text)
    pair = '<th scope="row">class 39</th><td>class 7</td><td class="n">5</td><td class="n">35.7</td>'
    assert '<table class="matrix">' not in text and pair in text and "10 more classes" in text
    assert "<script" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    "saved",
    [
        {"scores": {"digits": {"top1": "1", "Acc/x": 2, "Acc/0": 1e999}}, "classes": {"digits": [{}]}},
        {"scores": {"digits": {}}, "confusion": {"digits": [[1, 2], [3]]}, "classes": 3},
        {"scores": {"digits": {}}, "confusion": {"digits": [[-1]]}, "classes": {"digits": ["a"]}},
        {"scores": [], "confusion": {}},
        {"scores": {"digits": 1}, "confusion": {"digits": "abc"}, "split": {"a": HOSTILE}},
    ],
)
def test_a_strange_evaluation_is_left_out(run, dtem, saved):
    (run / "evaluation.json").write_text(json.dumps(saved))
    (run / "evaluation_2.json").write_text("[" * 100_000)
    dtem("report", run)
    text = (run / "report.html").read_text()
    check(text)
    assert '<table class="matrix">' not in text and "<script" not in text


@pytest.mark.parametrize("content", ["", "[]", "{", '{"log": 3}'])
def test_a_strange_config_is_refused_or_passed_over(tmp_path, dtem, content):
    (tmp_path / "config.json").write_text(content)
    code = 0 if content.startswith('{"') else 2
    assert ("its config.json does not read" in dtem("report", tmp_path, code=code)) == (code == 2)


def test_a_link_in_the_place_of_a_picture_is_not_read(run, tmp_path, dtem):
    (tmp_path / "secret.png").write_bytes(b"precious")
    folder = run / "pictures/step_00000004"
    folder.mkdir(parents=True)
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    told = [{"task": "a", "key": "k", "file": "../../a.png", "words": ["w"]}]
    (folder / "pictures.json").write_text(json.dumps(told))
    dtem("report", run)
    assert not check((run / "report.html").read_text()).all("img")


@pytest.mark.parametrize("low, high", [(0, 1), (5, 5), (0, 0), (-3e-9, 2e-9), (1, 1e9), (-7, -7)])
def test_ticks_hold_all_values_and_are_few(low, high):
    ticks = _ticks(low, high)
    assert ticks[0] <= low and high <= ticks[-1] and 2 <= len(ticks) <= 8


def test_lines_that_are_equal_are_all_seen():
    chart = draw([Line(name, [(0, 1, 1, 1), (1, 2, 2, 2)]) for name in "abcd"], "t", "x", 0)
    strokes = re.findall('<polyline [^>]*stroke-width="([^"]*)"(?: stroke-dasharray="([^"]*)")?', chart)
    widths = [float(width) for width, _ in strokes]
    assert len({dashes for _, dashes in strokes}) == 4 and strokes[0][1] == ""
    assert widths == sorted(widths, reverse=True)


def test_noise_does_not_fill_a_chart():
    line = Line("a", [(0, 50.0, 50.0, 50.0), (1, 50.1, 50.1, 50.1)])
    assert ">50.05<" in draw([line], "t", "x", 0) and ">50.05<" not in draw([line], "t", "x", 0, least=5.0)
    top = Line("a", [(0, 99.0, 99.0, 99.0)])
    assert ">102<" not in draw([top], "t", "x", 0, least=5.0, within=(0.0, 100.0))


def test_a_band_is_drawn_where_runs_differ_alone():
    assert "<polygon" in draw([Line("a", [(0, 1, 0.5, 2), (1, 1, 1, 1)])], "t", "x", 0)
    assert "<polygon" not in draw([Line("a", [(0, 1, 1, 1), (1, 2, 2, 2)])], "t", "x", 0)
