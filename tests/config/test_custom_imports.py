"""Modules of the user's own: a `.py` config imports them, and nothing that is data does."""

import json
import logging
import sys

import pytest
from tinyrun import tiny_plain

from launch import cli
from pipeline.config import modules
from pipeline.config.load import load_config
from pipeline.config.modules import import_named
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.train.loop import train

MODULE = '''
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.tome import ToMe


@POLICIES.register("plugged")
class Plugged(ToMe):
    """Of a user."""
'''


@pytest.fixture(autouse=True)
def named_for_this_test_alone(monkeypatch):
    """So that data workers of later tests import none of them."""
    monkeypatch.setattr(modules, "_IMPORTED", {})


@pytest.fixture
def project(digits, tmp_path, monkeypatch):
    """A folder of a user's, outside of the current one, with a module and a config that names it."""
    monkeypatch.setattr(POLICIES, "_factories", dict(POLICIES._factories))
    monkeypatch.setitem(sys.modules, "plugged_policy", None)
    monkeypatch.delitem(sys.modules, "plugged_policy")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "plugged_policy.py").write_text(MODULE)
    plain = tiny_plain(
        digits,
        tmp_path / "run",
        merging=dict(policy="plugged", reduction=2),
        train=dict(mode="backbone", steps=1, eval_every=None),
        optim=dict(warmup_steps=0),
    )
    lines = [f"{name} = {value!r}" for name, value in plain.items()]
    custom = 'custom_imports = dict(imports=["plugged_policy"], allow_failed_imports=False)'
    (folder / "run.py").write_text("\n".join([custom, *lines]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def forget() -> None:
    """As in a new process."""
    del sys.modules["plugged_policy"], POLICIES._factories["plugged"]


def test_a_python_config_imports_and_its_run_does_not(project, caplog, capsys, monkeypatch):
    path = list(sys.path)
    run = train(load_config(project / "run.py"))
    assert sys.path == path
    assert json.loads((run / "config.json").read_text())["custom_imports"] == ["plugged_policy"]
    forget()
    caplog.set_level(logging.WARNING)
    assert cli.main(["evaluate", str(run)]) == 2
    assert "plugged_policy" not in sys.modules
    assert "if you trust them, give --import plugged_policy" in caplog.text
    assert "unknown merge policy 'plugged'" in capsys.readouterr().err
    load_config(run / "config.json")
    assert "plugged_policy" not in sys.modules
    monkeypatch.chdir(project)
    caplog.clear()
    assert cli.main(["evaluate", str(run), "--import", "plugged_policy"]) == 0
    assert "--import" not in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dict(imports=['no_such_module_anywhere'])", "custom_imports no_such_module_anywhere: No module"),
        ("dict(imports=[3])", "custom_imports is .*give dict"),
        ("dict(import_=['json'])", "custom_imports is .*give dict"),
    ],
)
def test_what_cannot_be_imported_is_told(project, given, message):
    config = project / "run.py"
    config.write_text(f"custom_imports = {given}\n" + config.read_text().split("\n", 1)[1])
    with pytest.raises(ConfigError, match=message):
        load_config(config)


def test_a_module_that_may_fail_is_a_warning(project, caplog):
    config = project / "run.py"
    given = "dict(imports=['no_such_module_anywhere', 'plugged_policy'], allow_failed_imports=True)"
    config.write_text(f"custom_imports = {given}\n" + config.read_text().split("\n", 1)[1])
    assert load_config(config).merging.policy == "plugged"
    assert "custom_imports no_such_module_anywhere" in caplog.text and "plugged" in POLICIES.names()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import json\nx = undefined", r"failing_module.py, line 2: NameError: name 'undefined'"),
        ("import no_such_module_anywhere", "failing_module.py, line 1: ModuleNotFoundError: No module named"),
        ("def f(:", r"invalid syntax \(failing_module.py, line 1\)$"),
    ],
)
def test_a_module_that_fails_is_told_with_its_line(tmp_path, content, message):
    (tmp_path / "failing_module.py").write_text(content)
    with pytest.raises(ConfigError, match=message):
        import_named("failing_module", [str(tmp_path)], "--import")


def test_a_module_may_change_the_way_of_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "inserting_module.py").write_text("import sys\nsys.path.insert(0, 'of mine')")
    before = [*sys.path]
    import_named("inserting_module", [str(tmp_path)], "--import")
    assert sys.path == ["of mine", *before]
