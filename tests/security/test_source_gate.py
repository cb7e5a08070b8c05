"""What the source may not say, because data could then run: read from all of the product."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for top in ("pipeline", "tasks", "launch", "dtem", "benchmarks")
    for path in (ROOT / top).rglob("*.py")
)
MODULES = set(
    "pickle cloudpickle dill marshal shelve joblib webdataset code pty telnetlib requests urllib.request "
    "http.client ftplib xmlrpc torch.hub huggingface_hub".split()
)
"""Modules that run what they read, or reach the network beside the one door, data/shards/storage.py."""
CALLS = set(
    "eval exec compile __import__ breakpoint os.system os.popen yaml.unsafe_load yaml.full_load "
    "torch.jit.load torch.package.PackageImporter shutil.unpack_archive subprocess.getoutput "
    "subprocess.getstatusoutput torch.hub.load torch.hub.load_state_dict_from_url".split()
)
METHODS = set(
    "extractall extract gopen url_to_fs all_gather_object gather_object broadcast_object_list "
    "scatter_object_list send_object_list recv_object_list".split()
)
"""Last words of calls: unpacking to disk, shells behind URLs, and objects that ranks would unpickle."""
ARGUMENTS = {"shell": "False", "trust_remote_code": "False", "allow_pickle": "False"}
"""Arguments that have to have this value where they are given."""
ALLOWED = {
    ("pipeline/config/plain_files.py", "yaml.load"): "its own loader: SafeLoader without aliases",
    ("pipeline/config/python_files.py", "Config.fromfile"): "a .py config is the user's own program",
    (
        "pipeline/config/modules.py",
        "importlib.import_module",
    ): "the user's, named by --import or a .py config",
    ("benchmarks/peers.py", "importlib.import_module"): "the authors' code, which the user names",
    ("launch/cli.py", "importlib.import_module"): "of the commands, which are listed",
    ("pipeline/__init__.py", "importlib.import_module"): "of the public names, which are listed",
    ("pipeline/data/layouts/__init__.py", "import_module"): "of the layouts, which are listed",
    ("pipeline/train/trackers/trackio.py", "importlib.import_module"): "a package in no extra, by one name",
}
"""(file, call) -> why it may stand there."""
DOORS = {
    ("pipeline/backbone/adapters/hub.py", "huggingface_hub"): "adapters come from the hub as data",
    ("benchmarks/loaders.py", "webdataset"): "a peer, which reads shards that the script has written",
}
"""(file, module) -> why it may be imported there."""
ALONE = {call for _, call in ALLOWED} | {"importlib.import_module", "import_module"}
"""Calls that stand only where ALLOWED says."""


def faults(source: str, file: str) -> Iterator[str]:
    """What a source says that it may not, by line."""
    for node in ast.walk(ast.parse(source)):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (f"{where} imports {name}" for name in _imported(node) if _is_refused(name, file))
        elif isinstance(node, ast.Call):
            yield from (f"{where} {what}" for what in _of_call(node, file))


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [alias.name for alias in node.names]
    return names if isinstance(node, ast.Import) else [f"{node.module}.{name}" for name in names]


def _is_refused(name: str, file: str) -> bool:
    within = [module for module in MODULES if name == module or name.startswith(f"{module}.")]
    return any((file, module) not in DOORS for module in within)


def _of_call(node: ast.Call, file: str) -> Iterator[str]:
    called = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    starts = called.startswith(("os.exec", "os.spawn", "os.posix_spawn"))
    if called in CALLS or starts or (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
        yield f"calls {called}"
    if called in ALONE and (file, called) not in ALLOWED:
        yield f"calls {called}"
    if called == "torch.load" and given.get("weights_only") != "True":
        yield "calls torch.load without weights_only=True"
    for name, value in ARGUMENTS.items():
        if given.get(name, value) != value:
            yield f"gives {name}={given[name]}"


def test_the_source_runs_nothing_that_is_read():
    assert not [fault for file in FILES for fault in faults((ROOT / file).read_text(), file)]


@pytest.mark.parametrize(("file", "call"), ALLOWED)
def test_what_is_allowed_is_still_there(file, call):
    assert f"{call}(" in (ROOT / file).read_text(), "take it off the list"


@pytest.mark.parametrize(("file", "module"), DOORS)
def test_a_door_is_still_used(file, module):
    assert f"from {module}" in (ROOT / file).read_text(), "take it off the list"


SEEN = """
import pickle
from pickle import loads
from torch.hub import load
from torch import hub
from huggingface_hub import hf_hub_download
import webdataset as wds
eval(x)
exec(x)
compile(x, '', 'exec')
os.system(x)
os.execvp(x, y)
yaml.load(x)
yaml.unsafe_load(x)
torch.load(x)
torch.load(x, weights_only=False)
torch.load(x, weights_only=flag)
torch.jit.load(x)
np.load(x, allow_pickle=True)
tar.extractall(x)
tar.extract(x)
run(x, shell=True)
run(x, shell=flag)
f(trust_remote_code=True)
dist.all_gather_object(a, b)
importlib.import_module(x)
Config.fromfile(x)
"""
PASSED = """
re.compile(x)
model.eval()
torch.load(x, weights_only=True)
run(x, shell=False)
from torch import nn
"""


@pytest.mark.parametrize("source", SEEN.split("\n")[1:-1])
def test_the_gate_sees(source):
    assert list(faults(source, "pipeline/x.py"))


@pytest.mark.parametrize("source", PASSED.split("\n")[1:-1])
def test_the_gate_lets_pass(source):
    assert not list(faults(source, "pipeline/x.py"))
