"""Who may import whom, which file is the door to a package, and what may not be written at all: read from the
source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def files_of(*tops: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("*.py"))


FILES = files_of("pipeline", "tasks", "launch", "dtem")

BASE = {"errors", "registry", "token_state", "interfaces", "modes", "parts", "ranks"}
DATA = {"data", "data.targets", "data.members", "data.shards", "data.augment", "data.samples"}
"""What trains may import of `pipeline.data`: all but its makers."""

ROOMS = {
    "errors": set(),
    "registry": {"errors"},
    "rng": set(),
    "token_state": set(),
    "pixels": set(),
    "interfaces": {"token_state", "parts", "pixels", "ranks"},
    "files": {"errors"},
    "run_folder": {"files"},
    "modes": {"parts"},
    "parts": {"errors"},
    "ranks": set(),
    "version": set(),
    "extras": {"errors"},
    "config": {"errors", "registry"},
    "merging": BASE,
    "plan": {"errors", "config", "merging", "parts"},
    "balancing": {"errors", "registry", "config", "parts"},
    "backbone": BASE | {"run_folder", "config", "plan", "merging"},
    "data.targets": set(),
    "data.members": {"errors"},
    "data.shards": {"extras", "config", "errors", "files", "data.members"},
    "data.augment": {"config", "interfaces", "errors", "pixels", "rng", "data.members", "data.targets"},
    "data.samples": {"config", "errors", "registry", *DATA} - {"data"},
    "data": {"config", "interfaces", "errors", "pixels", "rng", *DATA},
    "data.make": {"extras", "errors", "files", "rng", "data.members", "data.shards", "data.samples"},
    "objectives": BASE | {"config", "merging", "backbone"},
    "model": BASE | {"config", "plan", "merging", "backbone", "objectives", "balancing"},
    "engine": BASE | {"extras", "config", "backbone", "model"},
    "train": BASE
    | DATA
    | {
        "extras",
        "rng",
        "files",
        "run_folder",
        "config",
        "plan",
        "merging",
        "backbone",
        "objectives",
        "model",
        "engine",
    },
}
"""Room of `pipeline` -> rooms that it may import, besides itself."""

TASKS = {
    "shared": set(),
    "captions": {"shared"},
    "masks": {"shared"},
    "open_clip_bridge": {"shared"},
    "mmseg_bridge": {"shared"},
}
"""Room of `tasks` -> rooms of `tasks` that it may import, besides itself. The tasks at the top import all."""

LAUNCH = {
    "checks": set(),
    "saved": set(),
    "measure": {"saved"},
    "report": {"measure"},
    "pictures": {"saved", "measure"},
    "exported": {"saved"},
    "commands": {"checks", "saved", "measure", "report", "pictures", "exported"},
}
"""Room of `launch` -> rooms of `launch` that it may import, besides itself. `cli.py` finds commands by
name."""

DOORS = {
    "aiohttp": {"pipeline/data/shards/storage.py"},
    "deepspeed": {"pipeline/engine/zero.py"},
    "fsspec": {"pipeline/data/shards/storage.py"},
    "matplotlib": {"launch/pictures/page.py", "launch/report/sweep_plot.py"},
    "packaging": {"launch/checks/packages.py"},
    "psutil": {"launch/checks/machine.py"},
    "sklearn": {"pipeline/data/make/digits/scenes.py"},
    "timm": {"pipeline/backbone/", "pipeline/data/augment/images.py"},
    "torchvision": {
        "pipeline/data/augment/images.py",
        "pipeline/data/members/decode.py",
        "pipeline/data/augment/images_with_masks.py",
    },
    "mmengine": {"pipeline/config/python_files.py", "tasks/mmseg_bridge/"},
    "mmseg": {"tasks/mmseg_bridge/"},
    "mmcv": {"tasks/mmseg_bridge/"},
    "open_clip": {"tasks/open_clip_bridge/"},
    "pycocoevalcap": {"tasks/captions/metrics.py"},
    "webdataset": set(),
    "transformers": set(),
}
"""Package -> the only files, or folders, that may name it."""

CODE_CARRIERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all imports of a file, those inside functions included; `from a import b` counts as
    a.b."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}:{node.lineno}: write the whole name of a module, not a relative one"
            )
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


TABLES: dict[str, dict[str, set[str]]] = {"pipeline": ROOMS, "tasks": TASKS, "launch": LAUNCH, "dtem": {}}
ABOVE = {
    "dtem": {"launch", "pipeline", "dtem"},
    "launch": {"tasks", "pipeline", "launch"},
    "tasks": {"tasks", "pipeline"},
    "pipeline": {"pipeline"},
}


def room(dotted: str) -> str:
    """The room of a module or name: pipeline.data.shards.find -> data.shards; a file at the top of tasks or
    launch, and a package itself -> ''."""
    top, *parts = dotted.split(".")
    named = [".".join(parts[:depth]) for depth in (2, 1)]
    return next((name for name in named if name in TABLES[top]), "")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_downwards(path):
    dotted = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    own = path.parts[0]
    if own == "pipeline" and dotted != "pipeline":
        assert room(dotted), f"{path} is in no room of ROOMS"
    for name in imported(path):
        top = name.split(".")[0]
        if top not in TABLES:
            continue
        assert top in ABOVE[own], f"{path} reaches up to {name}"
        here, there = room(dotted), room(name)
        if top == own and here:
            allowed = TABLES[own][here]
            assert there == here or there in allowed, (
                f"{path}: {here} may not import {name}; it may import {sorted(allowed)}"
            )


def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> modules of `files` that it imports, inside functions too. `from a import b` of a name b that
    is no module is an import of a."""

    def module(name: str) -> str:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    return {own: {module(name) for name in imported(path)} - {own, ""} for own, path in files.items()}


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; empty where there is none."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        found = next((path for name in sorted(imports[module]) if (path := visit(name, [*way, module]))), [])
        done.add(module)
        return found

    return next((found for module in imports if (found := visit(module, []))), [])


def test_no_imports_go_in_a_circle_also_inside_functions():
    files = files_of("dtem", "pipeline", "tasks", "launch")
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    assert not circle(graph(modules))


def test_a_circle_is_seen():
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_package_has_one_door(path):
    for name in imported(path):
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or path.as_posix().startswith(tuple(doors)), (
            f"{path} names {name}; its door is {sorted(doors or ()) or 'in tests only'}"
        )


@pytest.mark.parametrize("path", files_of("configs"), ids=str)
def test_a_config_that_comes_with_the_project_imports_nothing(path):
    assert not list(imported(path)), f"{path} is data, so that it can be read without running what it names"


@pytest.mark.parametrize("path", [*FILES, *files_of("benchmarks")], ids=str)
def test_nothing_that_is_read_can_run_code(path):
    for name in imported(path):
        assert name.split(".")[0] not in CODE_CARRIERS, f"{path} imports {name}"
    for call in (node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)):
        text, where = ast.unparse(call.func), f"{path}:{call.lineno}"
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert text not in ("eval", "exec", "__import__", "os.system", "os.popen"), f"{where} calls {text}"
        assert not text.endswith(".extractall"), f"{where} unpacks an archive to disk"
        assert arguments.get("shell") != "True", f"{where} starts a shell"
        assert arguments.get("trust_remote_code") != "True", f"{where} trusts remote code"
        if text == "torch.load":
            assert arguments.get("weights_only") == "True", (
                f"{where}: torch.load without weights_only=True runs code from the file"
            )


def test_the_rules_see_what_they_forbid():
    assert len(FILES) > 20
    assert "pipeline.merging.policies.POLICIES" in set(imported(Path("pipeline/plan/checks.py")))
    assert room("pipeline.data.shards.find") == "data.shards"
    assert room("pipeline.data.stream") == "data"
    assert room("launch.commands.sweep") == "commands"
    assert room("tasks.captioning") == ""


@pytest.mark.parametrize("top", TABLES)
def test_every_room_that_is_named_is_there(top):
    for name in TABLES[top]:
        path = ROOT / top / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{top}.{name} is no file and no folder"
