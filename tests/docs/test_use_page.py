"""docs/use.md: its Python runs, on a run that was really trained."""

import numpy as np
from pages import ROOT, blocks
from PIL import Image


def test_the_python_of_the_page_runs(trained, tmp_path, monkeypatch, capsys):
    (code,) = blocks(ROOT / "docs/use.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("photos/a.png", "photos/b.jpg", "one.png"):
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / name)
    exec(compile(code.replace("runs/digits_vit", str(trained)), "docs/use.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["photos/a.png", "photos/b.jpg", "one.png"]
    assert all(line.endswith(" 11") for line in lines)
