"""Without extras the core works, and whoever needs one is told the command that adds it."""

import ast
import configparser
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import without_extras
from packaging.requirements import Requirement
from tinyrun import tiny_plain, tiny_tasks_plain

from pipeline.errors import ConfigError
from pipeline.extras import DISTRIBUTION, EXTRAS, command, extra
from pipeline.train.reporting import Reporter
from pipeline.train.trackers import Trackers
from pipeline.train.trackers.tracker import TrackedRun

ROOT = Path(__file__).parents[2]
CORE = ("help", "train", "evaluate", "sweep", "export", "doctor")
OF_ANOTHER = {"aiohttp": "fsspec", "triton": "torch"}
"""Modules that come with a package of the core, as `fsspec[http]` says, and the CUDA builds of torch."""
BEHIND_A_DOOR = (
    "tasks/mmseg_bridge/",
    "pipeline/backbone/patching/hugging_face_",
    "pipeline/backbone/hosts/hugging_face_",
)
"""Files that are read when somebody went through the door: the `__init__` of the folder, or `patch`, which
imports them inside of it."""


def key(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def requirements() -> dict[str | None, list[Requirement]]:
    """Of setup.cfg: the core's under None, and each extra's."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = {None: setup["options"]["install_requires"], **setup["options.extras_require"]}
    return {name: [Requirement(line) for line in text.split("\n") if line] for name, text in texts.items()}


@pytest.fixture(scope="module")
def answers(digits, trained, tmp_path_factory):
    """Name of a command -> its exit code and what it said, where no extra is installed."""
    folder = tmp_path_factory.mktemp("without")

    def run(name, plain):
        (folder / f"{name}.json").write_text(json.dumps(plain))
        return ["train", "--config", str(folder / f"{name}.json")]

    def one_task(name):
        plain = tiny_tasks_plain(digits, folder / name)
        return run(name, plain | {"tasks": {name: plain["tasks"][name]}})

    mine = folder / "mine.py"
    mine.write_text(
        "_base_ = ['dtem::digits_vit.py']\n"
        f"tasks = dict(digits=dict(data=dict(train='{digits}', val='{digits}', workers=0, batch_size=8)))\n"
        "train = dict(steps=2)\n"
        "optim = dict(warmup_steps=0)\n"
        f"output = '{folder / 'run'}'\n"
    )
    core = {
        "help": ["--help"],
        "train": ["train", "--config", str(mine)],
        "evaluate": ["evaluate", str(folder / "run")],
        "sweep": ["sweep", str(folder / "run"), *"--policy tome --macs 0.8 --rounds 0".split()],
        "export": ["export", str(folder / "run"), "--out", str(folder / "exported")],
        "doctor": ["doctor"],
    }
    mixed = tiny_plain(digits, folder / "mixing")
    mixed["tasks"]["digits"]["head"] |= dict(token_mixup=dict(horizontal=dict(layer=0)))
    needing = {
        "deepspeed": run("ds", tiny_plain(digits, folder / "ds", engine=dict(type="deepspeed"))),
        "segmentation": one_task("masks"),
        "captioning": one_task("captions"),
        "hf": ["pipeline.backbone.hugging_face:open_model", str(folder)],
        "lightning": ["pipeline.own_loop.lightning:PhasesOfMerging"],
        "onnx": ["export", str(trained), "--out", str(folder / "program"), "--format", "onnx"],
        "trackers": run("wandb", tiny_plain(digits, folder / "wandb", log=dict(trackers=["csv", "wandb"]))),
        "plots": ["visualise", str(trained), "--num", "1"],
        "datasets": ["shards", "info", f"hf_datasets:{folder}"],
        "video": ["pipeline.data.members.video:check_video", "bytes", "mp4"],
        "completion": ["completion", "bash"],
        "mixing": run("mixing", mixed),
        "demo": ["shards", "make", "digit_scenes", str(folder / "digits"), "--train", "8"],
        **{
            scheme: run(scheme, tiny_plain(digits, folder / scheme, data=dict(train=f"{scheme}://none/")))
            for scheme in ("s3", "gs", "az")
        },
    }
    commands = folder / "commands.json"
    commands.write_text(json.dumps(core | needing))
    done = subprocess.run(
        [sys.executable, without_extras.__file__, str(commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    found["files"] = [path.relative_to(folder).as_posix() for path in folder.glob("*/**/*")]
    return found


@pytest.mark.parametrize("name", CORE)
def test_the_core_works_without_any_extra(name, answers):
    code, error = answers[name]
    assert code == 0, error
    assert answers["modules"] == []


@pytest.mark.parametrize("name", EXTRAS)
def test_what_needs_an_extra_names_the_command_that_adds_it(name, answers):
    code, error = answers[name]
    assert code == 2 and command(name) in error and "cannot be imported" in error
    assert [other for other in EXTRAS if command(other) in error] == [name]


def test_training_without_tensorboard_says_so(answers):
    said = answers["train"][1]
    assert "tensorboard is not installed" in said and command("plots") in said


def test_a_sweep_without_matplotlib_leaves_out_the_plots_alone(answers):
    said = answers["sweep"][1]
    assert "the plots are left out" in said and command("plots") in said
    swept = {name for name in answers["files"] if name.startswith("run/sweep/")}
    assert swept == {"run/sweep/sweep.json", "run/sweep/sweep.csv"}


def test_a_missing_engine_is_told_before_anything_is_made(answers):
    assert not [name for name in answers["files"] if name.split("/")[0] == "ds"]


def test_a_missing_package_has_a_command_and_another_way_out():
    with pytest.raises(ConfigError, match=r"pip install .*\[plots\].*or do y"), extra("plots", "do y"):
        import none_of_this_name  # noqa: F401 # pyright: ignore[reportMissingImports]


BREAKS = {
    "raise AttributeError('np.float')": "AttributeError: np.float",
    "raise RuntimeError('operator torchvision::nms')": "RuntimeError: operator torchvision::nms",
    "raise ImportError('libGL.so.1: cannot open')": "ImportError: libGL.so.1: cannot open",
    "import broken_here._ext": "ModuleNotFoundError: No module named 'broken_here._ext'",
}


@pytest.mark.parametrize("line", BREAKS)
def test_a_broken_package_is_named_and_gets_no_command(line, tmp_path, monkeypatch):
    (tmp_path / "broken_here").mkdir()
    (tmp_path / "broken_here/__init__.py").write_text(line + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as info, extra("captioning"):
        importlib.import_module("broken_here")
    assert "needs broken_here, which cannot be imported although it is installed" in str(info.value)
    assert BREAKS[line] in str(info.value) and "dtem doctor" in str(info.value)
    assert "pip install" not in str(info.value)


def test_a_broken_tensorboard_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "tensorboard.py").write_text("raise RuntimeError('protobuf')\n")
    for name in list(sys.modules):
        if name.split(".")[0] == "tensorboard" or name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    told = Trackers(TrackedRun(tmp_path / "run", "p", "run", (), "", {}), ["tensorboard"])
    with Reporter(tmp_path / "run", main=True, step=0, total_steps=1, trackers=told) as reporter:
        reporter.write(1, {"loss": 2.0})
    assert "tensorboard cannot be imported (RuntimeError: protobuf)" in caplog.text
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}


def test_the_extras_of_the_code_are_those_of_the_package():
    wanted = requirements()
    assert wanted.keys() - {None, "all", "dev"} == EXTRAS.keys() == without_extras.PACKAGES.keys()
    (everything,) = wanted["all"]
    assert everything.name == DISTRIBUTION and everything.extras == EXTRAS.keys()
    assert f"{DISTRIBUTION}[all]" in map(str, wanted["dev"])
    for name, packages in without_extras.PACKAGES.items():
        assert sorted(key(need.name) for need in wanted[name]) == sorted(packages.values())


def test_ranges_are_in_setup_cfg_and_one_version_of_each_in_the_lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    lock = {key(name): version for name, version in (line.split("==") for line in lines)}
    assert len(lock) == len(lines)
    for need in (need for needs in requirements().values() for need in needs if need.name != DISTRIBUTION):
        assert "==" not in str(need.specifier), f"{need}: pins stand in the lock"
        assert need.specifier.contains(lock[key(need.name)]), need


def imports(node: ast.AST, door: str | None = None) -> Iterator[tuple[str, int, str | None]]:
    """(top module, line, the extra in whose `with extra(...)` it stands) of each import that is run."""
    if isinstance(node, ast.Import):
        yield from ((alias.name.split(".")[0], node.lineno, door) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield str(node.module).split(".")[0], node.lineno, door
    elif isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        named = [ast.literal_eval(c.args[0]) for c in calls if ast.unparse(c.func) == "extra"]
        door = named[0] if named else door
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from imports(child, door)


@pytest.mark.parametrize("top", ("dtem", "launch", "tasks", "pipeline"))
def test_what_is_imported_is_declared_and_an_extras_packages_stand_inside_its_door(top):
    places = {key(need.name): place for place, needs in requirements().items() for need in needs}
    carriers = {module: key(names[0]) for module, names in packages_distributions().items()}
    carriers |= OF_ANOTHER
    for path in (ROOT / top).rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        for module, line, door in imports(ast.parse(path.read_text())):
            if module in sys.stdlib_module_names or (ROOT / module).is_dir():
                continue
            where, package = f"{file}:{line} imports {module}", carriers[module]
            assert package in places, f"{where}, of {package}, which setup.cfg does not name"
            place = places[package]
            if place is not None and not file.startswith(BEHIND_A_DOOR):
                assert door == place, f"{where} outside of `with extra({place!r})`"


def test_the_law_sees_what_stands_outside_of_its_door():
    source = "with extra('plots'):\n    import matplotlib.figure\nimport sklearn\n"
    assert list(imports(ast.parse(source))) == [("matplotlib", 2, "plots"), ("sklearn", 3, None)]
