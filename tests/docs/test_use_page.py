"""docs/use.md: its Python runs, on a run that was really trained."""

import json

import numpy as np
from pages import ROOT, blocks
from PIL import Image


def test_the_python_of_the_page_runs(trained, tmp_path, monkeypatch, capsys):
    code, _ = blocks(ROOT / "docs/use.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("photos/a.png", "photos/b.jpg", "one.png"):
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / name)
    exec(compile(code.replace("runs/digits_vit", str(trained)), "docs/use.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["photos/a.png", "photos/b.jpg", "one.png"]
    assert all(line.endswith(" 11") for line in lines)


def test_the_labels_of_real_are_counted_from_a_files_predictions(tmp_path, monkeypatch, capsys):
    """Four images: one of two right labels, a wrong one, one without labels, a right one."""
    _, code = blocks(ROOT / "docs/use.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real.json").write_text(json.dumps([[1, 2], [3], [], [4]]))
    lines = [
        {"key": f"val/n01440764/ILSVRC2012_val_{number:08d}", "prediction": label}
        for number, label in ((4, 4), (1, 2), (3, 0), (2, 5))
    ]
    (tmp_path / "predicted.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    exec(compile(code, "docs/use.md", "exec"), {})
    assert capsys.readouterr().out == "ReaL top-1 66.67 % of 3 images\n"
