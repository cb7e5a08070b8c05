"""Work waits for a package, and the package does not notice."""

import importlib
import importlib.util
import inspect
import subprocess
import sys

import pytest

from pipeline.later import when_imported


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its own name, that nobody has imported."""
    (tmp_path / "waited_for.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield tmp_path / "waited_for.py"
    sys.modules.pop("waited_for", None)


def test_it_is_called_once_behind_the_import(package):
    seen: list[int] = []
    when_imported("waited_for", lambda: seen.append(sys.modules["waited_for"].VALUE))
    import json  # noqa: F401 - another package

    assert seen == []
    import waited_for

    assert seen == [1] and "VALUE = 1" in inspect.getsource(waited_for)
    assert "exec_module" not in vars(waited_for.__loader__)
    del sys.modules["waited_for"]
    import waited_for  # noqa: F811

    assert seen == [1]


def test_who_asks_whether_a_package_is_there_does_not_import_it(package):
    """transformers asks for timm so."""
    seen: list[int] = []
    when_imported("waited_for", lambda: seen.append(1))
    assert importlib.util.find_spec("waited_for") is not None and seen == []
    import waited_for  # noqa: F401

    assert seen == [1]


def test_several_may_wait(package):
    seen: list[int] = []
    for number in (1, 2):
        when_imported("waited_for", lambda number=number: seen.append(number))
    import waited_for  # noqa: F401

    assert sorted(seen) == [1, 2]


def test_it_is_called_at_once_where_the_package_is_there(package):
    import waited_for  # noqa: F401

    seen: list[int] = []
    when_imported("waited_for", lambda: seen.append(1))
    assert seen == [1]


def test_a_package_that_fails_fails_as_ever(package):
    package.write_text("raise KeyError('x')\n")
    when_imported("waited_for", lambda: pytest.fail("it was not imported"))
    with pytest.raises(KeyError):
        import waited_for  # noqa: F401
    package.unlink()
    when_imported("not_there", lambda: pytest.fail("it is not there"))
    with pytest.raises(ModuleNotFoundError):
        import not_there  # noqa: F401


def test_dtem_registers_its_names_in_a_timm_that_is_imported_later(monkeypatch):
    """timm's own package is run again, beside its modules, which are there."""
    import timm

    import pipeline.backbone.timm_names as names

    dtem = importlib.import_module("dtem")
    seen: list[str] = []
    monkeypatch.setattr(names, "register_names", lambda: seen.append(timm.__name__))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "timm")
    importlib.reload(dtem)
    assert seen == []
    again = importlib.import_module("timm")
    assert seen == ["timm"] and again is not timm and again.create_model is timm.create_model


def test_and_in_one_that_was_imported_before():
    import timm

    importlib.reload(importlib.import_module("dtem"))
    names = timm.list_models(module="timm_names")
    assert "deit_small_patch16_224_dtem" in names and len(names) == len(set(names)) > 200


def test_dtem_alone_imports_neither_timm_nor_torch():
    code = "import dtem, sys; print([name for name in ('timm', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
