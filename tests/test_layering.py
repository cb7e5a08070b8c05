"""Who may import whom, which file is the door to a package, what has a type: read from the
source."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def files_of(*tops: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("*.py"))


FILES = files_of("pipeline", "tasks", "launch", "dtem")

BASE = {"errors", "registry", "token_state", "interfaces", "modes", "parts", "ranks", "kernels"}
DATA = {"data", "data.targets", "data.members", "data.layouts", "data.shards", "data.augment", "data.samples"}
"""What trains may import of `pipeline.data`: all but its makers."""

ROOMS = {
    "redact": set(),
    "errors": {"redact"},
    "registry": {"errors"},
    "rng": set(),
    "token_state": set(),
    "changes": set(),
    "pixels": {"changes"},
    "framing": set(),
    "coded": {"errors", "framing"},
    "kernels": {"errors"},
    "shared_tensors": set(),
    "interfaces": {"coded", "errors", "token_state", "parts", "pixels"},
    "files": {"errors"},
    "processes": set(),
    "run_folder": {"errors", "files"},
    "modes": {"parts"},
    "parts": {"errors"},
    "ranks": set(),
    "version": set(),
    "later": set(),
    "extras": {"errors"},
    "config": {"errors", "registry", "redact"},
    "merging": BASE,
    "plan": {"errors", "config", "merging", "parts"},
    "loss_transformer": set(),
    "balancing": {"errors", "registry", "config", "parts", "loss_transformer"},
    "backbone": BASE
    | {"extras", "files", "pixels", "shared_tensors", "version", "run_folder", "config", "plan", "merging"},
    "data.targets": set(),
    "data.members": {"coded", "errors", "framing", "extras"},
    "data.layouts": {"errors", "extras", "rng", "data.members"},
    "data.shards": {"extras", "config", "errors", "files", "redact", "data.members", "data.layouts"},
    "data.augment": {
        "changes",
        "coded",
        "framing",
        "config",
        "interfaces",
        "errors",
        "pixels",
        "rng",
        "data.members",
        "data.targets",
    },
    "data.samples": {"changes", "coded", "config", "errors", "extras", "registry", *DATA} - {"data"},
    "data": {
        "changes",
        "coded",
        "config",
        "interfaces",
        "errors",
        "pixels",
        "processes",
        "redact",
        "rng",
        *DATA,
    },
    "data.make": {
        "extras",
        "errors",
        "files",
        "processes",
        "rng",
        "data.members",
        "data.layouts",
        "data.shards",
        "data.samples",
    },
    "objectives": BASE | {"config", "merging", "backbone", "rng"},
    "own_loop": BASE | {"extras", "rng", "merging", "backbone", "objectives"},
    "refusals": {"errors", "interfaces", "config", "plan", "merging", "backbone", "objectives"},
    "start_weights": {"errors", "parts", "config", "backbone"},
    "peers": {"errors", "interfaces"},
    "model": BASE
    | {
        "config",
        "plan",
        "merging",
        "backbone",
        "objectives",
        "balancing",
        "refusals",
        "start_weights",
        "peers",
    },
    "drawing": {"errors", "interfaces", "token_state", "data.targets", "data.members", "merging", "model"},
    "engine": BASE | {"extras", "config", "merging", "backbone", "model"},
    "train": BASE
    | DATA
    | {
        "extras",
        "redact",
        "rng",
        "files",
        "processes",
        "run_folder",
        "config",
        "plan",
        "merging",
        "backbone",
        "objectives",
        "balancing",
        "model",
        "drawing",
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
    "configs": {"checks"},
    "saved": set(),
    "measure": {"saved"},
    "report": {"saved", "measure"},
    "run_report": {"measure", "report"},
    "board": {"saved", "measure", "report", "run_report"},
    "pictures": {"saved", "measure", "report", "predict"},
    "exported": {"saved"},
    "published": {"saved", "measure"},
    "predict": {"saved", "published"},
    "bench": {"saved", "published", "measure", "report"},
    "teach": {"saved", "published", "measure", "report", "exported"},
    "cluster": {"checks", ""},
    "completion": {""},
    "commands": {
        "checks",
        "configs",
        "cluster",
        "saved",
        "measure",
        "report",
        "run_report",
        "board",
        "pictures",
        "exported",
        "published",
        "predict",
        "bench",
        "teach",
        "completion",
    },
}
"""Room of `launch` -> rooms of `launch` that it may import, besides itself. `cli.py` finds commands by
name. `cluster` starts `train.py`, and `completion` reads the parser of `cli.py`, which lie above the rooms
(``)."""

DOORS = {
    "aiohttp": {"pipeline/data/shards/storage.py"},
    "av": {"pipeline/data/members/video.py"},
    "datasets": {"pipeline/data/layouts/hf_datasets.py"},
    "deepspeed": {"pipeline/engine/zero.py"},
    "huggingface_hub": {"pipeline/backbone/adapters/hub.py"},
    "fsspec": {"pipeline/data/shards/storage.py"},
    "lightning": {"pipeline/own_loop/lightning.py"},
    "matplotlib": {"launch/pictures/png_page.py", "launch/report/"},
    "packaging": {"launch/checks/packages.py"},
    "psutil": {"launch/checks/machine.py", "launch/cluster/", "pipeline/processes.py"},
    "scipy": {"pipeline/backbone/assignment.py"},
    "sklearn": {"pipeline/data/make/digits/scenes.py"},
    "timm": {
        "pipeline/backbone/",
        "pipeline/data/augment/",
        "pipeline/engine/optimizers.py",
        "tasks/multi_label.py",
    },
    "torchvision": {
        "pipeline/coded.py",
        "pipeline/framing.py",
        "pipeline/data/augment/",
        "pipeline/data/members/decode.py",
    },
    "mmengine": {"pipeline/config/python_files.py", "tasks/mmseg_bridge/"},
    "mmseg": {"tasks/mmseg_bridge/"},
    "mmcv": {"tasks/mmseg_bridge/"},
    "open_clip": {"tasks/open_clip_bridge/"},
    "pycocoevalcap": {"tasks/captions/metrics.py"},
    "triton": {"pipeline/kernels/"},
    "webdataset": set(),
    "wandb": {"pipeline/train/trackers/wandb.py"},
    "mlflow": {"pipeline/train/trackers/mlflow.py"},
    "transformers": {
        "pipeline/backbone/hugging_face.py",
        "pipeline/backbone/hosts/hugging_face_layers.py",
        "pipeline/backbone/patching/hugging_face_tower.py",
        "pipeline/backbone/patching/hugging_face_models.py",
    },
}
"""Package -> the only files, or folders, that may name it."""

TYPED = set(
    "attn backbone balancing block captioner decoder engine evaluator head layer loader model module "
    "objective policy pooler procedure reduction stream task".split()
)
"""What a name ends in, also in the plural, whose type says what may be asked of it."""


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


@cache
def imported(path: Path, at_once: bool = False) -> list[str]:
    """Dotted names of all imports of a file, those inside functions included; `from a import b` counts as
    a.b. at_once: only those that the import of the file needs."""
    names: list[str] = []
    module = parse(path)
    blocks = (ast.FunctionDef, ast.If) if at_once else ()
    later = {inner for node in ast.walk(module) if isinstance(node, blocks) for inner in ast.walk(node)}
    for node in (node for node in ast.walk(module) if node not in later):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}:{node.lineno}: write the whole name of a module, not a relative one"
            )
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return names


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


def test_imports_go_downwards():
    for path in FILES:
        imports_go_downwards(path)


def imports_go_downwards(path: Path) -> None:
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


def test_a_package_has_one_door():
    for path, name in ((file, name) for file in FILES for name in imported(file)):
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or path.as_posix().startswith(tuple(doors)), (
            f"{path} names {name}; its door is {sorted(doors or ()) or 'in tests only'}"
        )


def test_transformers_is_imported_when_a_model_of_it_is_there():
    """It takes seconds. So no file needs it to be imported, but patching's own for such models."""
    needing, more = set(), {"transformers"}
    while more:
        heavy = tuple(".".join(Path(name).with_suffix("").parts) for name in more)
        found = {
            path.as_posix()
            for path in FILES
            if any(n.startswith(heavy) for n in imported(path, at_once=True))
        }
        more = found - needing
        needing |= more
    assert len(needing) > 2 and all("/hugging_face_" in name for name in needing), needing


def says_nothing(annotation: ast.expr | None) -> bool:
    return annotation is None or re.search(r"\bAny\b", ast.unparse(annotation)) is not None


def has_role(name: str) -> bool:
    last = name.lower().rpartition("_")[2]
    return not TYPED.isdisjoint({last, last.removesuffix("s"), last.removesuffix("ies") + "y"})


def untyped(tree: ast.Module) -> Iterator[str]:
    """What holds a model, a task, a loader or the like and does not say what may be asked of it, by line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs):
                if has_role(parameter.arg) and says_nothing(parameter.annotation):
                    yield f"{parameter.lineno}: parameter {parameter.arg}"
            if has_role(node.name) and "property" in map(ast.unparse, node.decorator_list):
                if says_nothing(node.returns):
                    yield f"{node.lineno}: {node.name}"
        elif isinstance(node, ast.AnnAssign):
            name = ast.unparse(node.target).rpartition(".")[2]
            if has_role(name) and says_nothing(node.annotation):
                yield f"{node.lineno}: {name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("cast"):
            if node.args and says_nothing(node.args[0]):
                yield f"{node.lineno}: {ast.unparse(node)}"


ROLES = [path for path in files_of("pipeline", "tasks", "launch") if path.parts[:2] != ("pipeline", "config")]
"""A configuration holds plain data, also under the name of a head or a model."""


def test_what_is_asked_of_a_part_is_in_its_type():
    found = [f"{path}:{place}" for path in ROLES for place in untyped(parse(path))]
    assert not found, "give a class, or a protocol with what is asked: " + "; ".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "def f(model): ...",
        "def f(self, *, task: Any = None): ...",
        "def f(loaders: Mapping[str, Any]): ...",
        "def f(merge_policies: 'Sequence[Any]'): ...",
        "@property\ndef module(self): ...",
        "head: Any = tasks[0]",
        "self.decode_head: Any = build()",
        "typing.cast(Any, whatever).evaluate()",
    ],
)
def test_a_part_without_a_type_is_seen(source):
    assert len(list(untyped(ast.parse(source)))) == 1


def test_a_part_with_a_type_passes():
    source = "def f(model: Model, tasks: Sequence[str], options: Any, value): stream: Iterator[Batch] = g()"
    assert not list(untyped(ast.parse(source)))


def test_every_protocol_is_used_as_a_type():
    trees = [parse(path) for path in FILES]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    protocols = {cls.name for cls in classes if "Protocol" in map(ast.unparse, cls.bases)}
    used: set[str] = {name for cls in classes for base in cls.bases for name in names_in(base)}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            used |= names_in(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            used |= names_in(node.returns)
        elif isinstance(node, ast.keyword) and node.arg == "bound":
            used |= names_in(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            used |= names_in(node.args[1])
    assert len(protocols) > 5 and not protocols - used


def names_in(annotation: ast.expr | None) -> set[str]:
    return set() if annotation is None else set(re.findall(r"\w+", ast.unparse(annotation)))


def test_a_config_that_comes_with_the_project_imports_nothing():
    """It is data, so that it can be read without running what it names."""
    assert not [path for path in files_of("configs") if list(imported(path))]


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
