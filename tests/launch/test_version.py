"""One version, on which the package, its metadata and the command agree, and the commit of a checkout."""

import configparser
import subprocess
import sys
from pathlib import Path

import forks

import dtem
import pipeline
from pipeline.version import VERSION, description

ROOT = Path(__file__).parents[2]


def git(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_public_names_are_those_of_pipeline():
    """And `load_run`, which is of the room above."""
    assert set(dtem.__all__) == {*pipeline.__all__, "__version__", "load_run"}
    assert dtem.__version__ == VERSION
    for name in pipeline.__all__:
        assert getattr(dtem, name) is getattr(pipeline, name) and callable(getattr(dtem, name))


def test_the_metadata_takes_the_version_from_the_code():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: pipeline.version.VERSION"


def test_a_checkout_tells_its_commit_and_whether_it_has_changes(tmp_path):
    assert description(tmp_path) == VERSION
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    clean = description(tmp_path)
    assert clean.startswith(f"{VERSION}, commit ") and not clean.endswith("with changes")
    (tmp_path / "a.py").write_text("a = 2\n")
    assert description(tmp_path) == f"{clean} with changes"
    (tmp_path / "inner").mkdir()  # an environment inside of a checkout of something else
    assert description(tmp_path / "inner") == VERSION


def test_python_m_dtem_is_the_command_and_its_version_does_not_wait_for_torch():
    code = "import sys, runpy; sys.argv = ['dtem', '--version']\n"
    code += "try: runpy.run_module('dtem', run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout.splitlines() == [f"dtem {description()}", "False"]


def test_what_launchers_start_answers_as_train():
    done = forks.run("-m", "dtem.train", "--config", "dtem::no_such.py")
    assert done.returncode == 2 and "unknown config of the project 'no_such.py'" in done.stderr
