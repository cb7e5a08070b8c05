"""The code of docs/adapters.md runs, with a hub on this machine."""

from pages import ROOT, blocks


def test_the_code_of_the_page_runs(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "docs/adapters.md", "python")
    names: dict = {}
    exec(compile(code, "docs/adapters.md", "exec"), names)
    assert set(hub.files("user/deit-small-dtem")) == {
        path.name for path in (tmp_path / "my_adapter").iterdir()
    }
    assert names["model"].reduction == 13 and len(names["model"].merging_blocks) == 12
