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
ROOMS = {
    "errors": set(),
    "registry": {"errors"},
    "token_state": set(),
    "interfaces": {"token_state", "parts"},
    "files": {"errors"},
    "run_folder": {"files"},
    "modes": set(),
    "parts": set(),
    "ranks": set(),
    "version": set(),
    "config": {"errors", "registry"},
    "config.resolve": {"errors", "config", "merging"},
    "merging": BASE,
    "balancing": {"errors", "registry", "config"},
    "backbone": BASE | {"run_folder", "config", "config.resolve", "merging"},
    "data": {"config", "interfaces", "errors", "registry", "files"},
    "objectives": BASE | {"config", "merging", "backbone"},
    "model": BASE | {"config", "config.resolve", "merging", "backbone", "objectives", "balancing"},
    "engine": BASE | {"config", "backbone", "model"},
    "train": BASE
    | {
        "files",
        "run_folder",
        "config",
        "config.resolve",
        "merging",
        "backbone",
        "data",
        "objectives",
        "model",
        "engine",
    },
}
"""Room of `pipeline` -> rooms that it may import, besides itself."""

DOORS = {
    "aiohttp": {"pipeline/data/storage.py"},
    "deepspeed": {"pipeline/engine/zero.py"},
    "fsspec": {"pipeline/data/storage.py"},
    "timm": {"pipeline/backbone/", "pipeline/data/augment.py"},
    "torchvision": {"pipeline/data/augment.py", "pipeline/data/decode.py", "pipeline/data/joint.py"},
    "mmengine": {"pipeline/config/python_files.py", "tasks/mmseg_bridge/"},
    "mmseg": {"tasks/mmseg_bridge/"},
    "mmcv": {"tasks/mmseg_bridge/"},
    "open_clip": {"tasks/open_clip_bridge/"},
    "pycocoevalcap": {"tasks/caption_metrics.py"},
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


def room(dotted: str) -> str:
    """pipeline.config.resolve.x -> config.resolve; pipeline.data.shards -> data; pipeline -> ''."""
    parts = dotted.split(".")[1:]
    return ".".join(parts[:2]) if parts[:2] == ["config", "resolve"] else "".join(parts[:1])


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_downwards(path):
    dotted = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    tops = {
        "dtem": {"launch", "pipeline", "dtem"},
        "launch": {"tasks", "pipeline", "launch"},
        "tasks": {"tasks", "pipeline"},
        "pipeline": {"pipeline"},
    }[path.parts[0]]
    for name in imported(path):
        top = name.split(".")[0]
        if top not in ("pipeline", "tasks", "launch", "dtem"):
            continue
        assert top in tops, f"{path} reaches up to {name}"
        if path.parts[0] == "pipeline" and dotted != "pipeline":
            here, there = room(dotted), room(name)
            assert there == here or there in ROOMS[here], (
                f"{path}: {here} may not import {name}; it may import {sorted(ROOMS[here])}"
            )


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
    assert "pipeline.merging.policies.POLICIES" in set(imported(Path("pipeline/config/resolve.py")))
    assert room("pipeline.config.resolve.resolve") == "config.resolve"
    assert room("pipeline.config.load") == "config"
