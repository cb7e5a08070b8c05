"""Tasks come together from several files, and what cannot be one run is refused before it starts, all
mistakes at once."""

import inspect
import json
import sys

import pytest
from tinyrun import tiny_tasks_plain

from pipeline.config.load import from_plain, load_config
from pipeline.errors import ConfigError, SampleError
from pipeline.plan.facts import ModelFacts
from pipeline.plan.resolve import resolve
from pipeline.train.loop import train

FACTS = ModelFacts(patch=(16, 16), depth=12, num_prefix=1, grid=(14, 14))
FROZEN = {"frozen": True, "train": None}


def task(weight=None, share=None, frozen=False, merging=None, accumulation=1, **data):
    data = {"schema": "classification", "train": "train.tar", "batch_size": 4} | data
    given = {"weight": weight, "share": share, "merging": merging}
    chosen = {name: value for name, value in given.items() if value is not None}
    return {"type": "classification", "data": data, "frozen": frozen, "accumulation": accumulation} | chosen


def run(tasks=None, **sections):
    """Of tasks a and b, whose settings `tasks` changes or adds to."""
    settings = {"a": {}, "b": {}} | (tasks or {})
    plain = {
        "backbone": {"name": "x"},
        "train": {"steps": 10},
        "merging": {"policy": "dtem", "reduction": 8},
        "output": "runs/x",
    }
    return from_plain(
        plain | sections | {"tasks": {name: task(**options) for name, options in settings.items()}}
    )


def complaint(*args, **sections) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(run(*args, **sections), 1, FACTS)
    return str(caught.value)


SAMPLED = {"mixing": {"mode": "sampled"}}


@pytest.mark.parametrize(
    "tasks, sections, part",
    [
        ({"b": {"train": None}}, {}, "tasks.b.data.train is not given, so no stream feeds its head"),
        ({"b": {"frozen": True}}, {}, "tasks.b is frozen, so no head reads tasks.b.data.train"),
        ({"a": FROZEN, "b": FROZEN}, {}, "tasks.a, tasks.b: all are frozen, so there is nothing to train"),
        ({"b": {"share": 2}}, SAMPLED, "tasks.a.share is not given, but that of another task is"),
        ({"a": {"share": 1}, "b": {"share": 2}}, {}, "but mixing.mode is 'all'"),
        (
            {},
            {"train": {"steps": 1, "best": "c"}},
            "train.best is 'c', which is not a task; give one of a, b, or None",
        ),
        (
            {"a": {"val": "x"}},
            {"train": {"steps": 1, "best": "b"}},
            "train.best is 'b', but tasks.b.data.val is not given",
        ),
        ({}, {"train": {"steps": 1, "eval_every": 1}}, "tasks.b.data.val is not given"),
        (
            {},
            {"balancing": {"type": "gradient_norm"}} | SAMPLED,
            "balancing.type is 'gradient_norm', which compares the tasks' gradients",
        ),
        (
            {},
            {"balancing": {"type": "gradient_norm", "every": 0}},
            "balancing.every is 0: nothing would be measured",
        ),
        (
            {},
            {"balancing": {"type": "meltr"}, "engine": {"accumulation": 2}} | SAMPLED,
            "balancing.type is 'meltr', which compares the tasks' gradients",
        ),
        (
            {"b": {"accumulation": 2}},
            {"balancing": {"type": "meltr"}},
            "tasks.a has one; give tasks.a.accumulation=2, or engine.accumulation=2",
        ),
        ({"b-c": {}}, {}, "the task name 'b-c' is not an identifier"),
        ({"b.c": {}}, {}, "the task name 'b.c' is not an identifier"),
        ({"1": {}}, {}, "the task name '1' is not an identifier"),
        ({"": {}}, {}, "the task name '' is not an identifier"),
        ({"items": {}}, {}, "the task name 'items' is"),
        ({"get": {}}, {}, "the task name 'get' is"),
        ({"training": {}}, {}, "the task name 'training' is"),
        ({"b": {"weight": 0}}, {}, "tasks.b.weight is 0"),
        ({"b": {"weight": -1.0}}, {}, "tasks.b.weight is -1.0; give a number above 0, or leave the task out"),
        ({"a": {"share": 1}, "b": {"share": 0}}, SAMPLED, "tasks.b.share is 0"),
        ({"a": {"share": 1}, "b": {"share": -2}}, SAMPLED, "tasks.b.share is -2"),
        ({"b": {"accumulation": 0}}, {}, "tasks.b.accumulation is 0"),
        (
            {},
            {"balancing": {"type": "gradient_norm"}, "train": {"steps": 1, "mode": "heads"}},
            "share nothing that is trained",
        ),
        ({"b": {"img_size": 100}}, {}, "tasks.b.data.img_size is 100, which does not divide by patch 16"),
        ({"b": {"merging": {"reduction": 17}}}, {}, "tasks.b: "),
        ({"b": {"merging": {"reduction_range": [0, 99]}}}, {}, "tasks.b.merging.reduction_range goes to 99"),
        (
            {"b": {"merging": {"reduction": 4}}},
            {"merging": {"policy": "none"}, "train": {"steps": 1, "mode": "backbone"}},
            "tasks.b.merging",
        ),
    ],
)
def test_tasks_that_are_no_run_together_are_refused(tasks, sections, part):
    assert part in complaint(tasks, **sections)


@pytest.mark.parametrize(
    "tasks, part",
    [
        ({"b": {"weight": float("nan")}}, "tasks.b.weight: expected a finite number"),
        (
            {"b": {"merging": {"reduction": 4, "target_macs": 0.5}}},
            "tasks.b.merging: merging.reduction and merging.target_macs exclude",
        ),
    ],
)
def test_a_setting_of_a_task_that_cannot_be_is_refused(tasks, part):
    with pytest.raises(ConfigError) as caught:
        run(tasks)
    assert part in str(caught.value)


def test_all_that_is_wrong_with_the_tasks_is_told_at_once():
    tasks = {
        "a": {"train": None, "weight": 0},
        "b": {"frozen": True, "share": 2},
        "c": {"share": 1},
        "d-e": {},
    }
    said = complaint(tasks, train={"steps": 1, "best": "z"}, balancing={"type": "gradient_norm", "every": 0})
    assert "8 mistakes" in said and len(said.splitlines()) == 10


def test_tasks_whose_shards_are_not_there_are_told_at_once(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run")
    for name in ("captions", "masks"):
        plain["tasks"][name]["data"] |= {"train": str(tmp_path / name)}
    with pytest.raises(SampleError) as caught:
        train(from_plain(plain))
    assert str(tmp_path / "captions") in str(caught.value) and str(tmp_path / "masks") in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sections", [{}, SAMPLED, {"balancing": {"type": "uncertainty"}}])
def test_a_frozen_task_beside_a_fed_one_is_a_run(sections):
    resolved = resolve(run({"a": FROZEN}, **sections), 1, FACTS)
    assert set(resolved.micro_batches) == set(resolved.global_batch) == set(resolved.shares) == {"b"}


# --- several files, and names that are there twice

START = "backbone = dict(name='x')\ntrain = dict(steps=3)\noutput = 'x'\n"
FILE = (
    "tasks = dict({name}=dict(type='classification', weight={weight}, data=dict(schema='s', "
    "train='{name}.tar')))\n"
)


@pytest.fixture
def files(tmp_path):
    """Writes text to files by name, and gives the path of the last."""
    (tmp_path / "tasks").mkdir()

    def write(**texts: str):
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.write_text(text)
        return path

    write(tasks__a=FILE.format(name="a", weight=2), tasks__b=FILE.format(name="b", weight=3))
    return write


def refused(path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


def test_files_of_an_inherited_line_lie_beside_the_base_that_has_it(files):
    files(tasks__both=START + "tasks = dict(_base_=['a.py', 'b.py'])\n")
    path = files(run="_base_ = ['tasks/both.py']\ntasks = dict(a=dict(weight=5))\n")
    tasks = load_config(path).tasks
    assert (tasks["a"].weight, tasks["b"].weight) == (5, 3)


def test_tasks_of_several_files_are_joined_in_their_order_and_then_changed(files):
    path = files(
        run=START
        + "tasks = dict(_base_=['tasks/b.py', 'tasks/a.py'], a=dict(weight=5, data=dict(batch_size=7)))\n"
    )
    tasks = load_config(path, ["tasks.b.share=4"]).tasks
    assert list(tasks) == ["b", "a"]
    assert (tasks["a"].weight, tasks["a"].data.batch_size, tasks["a"].data.train) == (5, 7, "a.tar")
    assert (tasks["b"].weight, tasks["b"].share) == (3, 4)


def test_a_joined_task_can_be_replaced_and_a_new_one_added(files):
    own = "a=dict(_delete_=True, type='x', data=dict(schema='s')), c=dict(type='y', data=dict(schema='s'))"
    tasks = load_config(
        files(run=START + f"tasks = dict(_base_=['tasks/a.py', 'tasks/b.py'], {own})\n")
    ).tasks
    assert {name: task.type for name, task in tasks.items()} == {"a": "x", "b": "classification", "c": "y"}
    assert tasks["a"].data.train is None and tasks["a"].weight == 1


def test_a_joined_file_may_itself_be_a_whole_run(files):
    both = START + "tasks = dict(_base_=['a.py', 'b.py'])\n"
    path = files(
        tasks__both=both,
        tasks__c=FILE.format(name="c", weight=1),
        run=START + "tasks = dict(_base_=['tasks/both.py', 'tasks/c.py'])\n",
    )
    assert list(load_config(path).tasks) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "given, part",
    [
        ("'tasks/a.py'", "tasks._base_ is 'tasks/a.py'; give a list of config files"),
        ("[3]", "tasks._base_ is [3]; give a list of config files"),
        ("['tasks/none.py']", "tasks/none.py, which is not a config (.py) that is there"),
        ("['tasks']", "which is not a config (.py) that is there"),
    ],
)
def test_a_joined_file_that_is_none_is_named(files, given, part):
    assert part in refused(files(run=START + f"tasks = dict(_base_={given})\n"))


def test_two_files_with_a_task_of_one_name_are_refused_with_both(files):
    files(tasks__c=FILE.format(name="a", weight=1))
    said = refused(files(run=START + "tasks = dict(_base_=['tasks/a.py', 'tasks/b.py', 'tasks/c.py'])\n"))
    assert "two tasks of one name: 'a' is in tasks/a.py and in tasks/c.py" in said


def test_a_file_that_joins_itself_is_refused(files):
    path, limit = files(run=START + "tasks = dict(_base_=['run.py'])\n"), sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        said = refused(path)
    finally:
        sys.setrecursionlimit(limit)
    assert "nested too deeply" in said or "RecursionError" in said


def test_two_bases_that_both_set_the_tasks_are_refused(files):
    assert "Duplicate key" in refused(files(run="_base_ = ['tasks/a.py', 'tasks/b.py']\n" + START))


_ONE = "dict(type='x', data=dict(schema='s'))"
TWICE = f"tasks = {{'a': {_ONE}, 'b': {_ONE}, 'a': {_ONE}}}\n"


@pytest.mark.parametrize(
    "texts",
    [
        {"run": START + TWICE},
        {"base": TWICE, "run": "_base_ = ['base.py']\n" + START},
        {"base": TWICE, "run": "_base_ = 'base.py'\n" + START},
        {"deep": TWICE, "base": "_base_ = './deep.py'\n", "run": "_base_ = ['base.py']\n" + START},
        {"base": TWICE, "run": START + "tasks = dict(_base_=['tasks/a.py', 'base.py'])\n"},
    ],
    ids=["itself", "base", "only base", "base of the base", "joined"],
)
def test_a_dict_with_a_task_twice_is_refused_wherever_it_stands(files, texts):
    assert "line" in (said := refused(files(**texts))) and "the key 'a' is there twice" in said


@pytest.mark.parametrize("where", ["run", "base"])
def test_a_section_that_is_set_twice_is_refused_unless_it_reads_itself(files, where):
    def texts(line: str) -> dict[str, str]:
        text, run = (
            f"optim = dict(lr=1e-3)\n{line}\n_steps = 1\n_steps = 2\n",
            START + FILE.format(name="a", weight=1),
        )
        return (
            {"run": run + text} if where == "run" else {"base": text, "run": "_base_ = ['base.py']\n" + run}
        )

    assert (
        "line" in (said := refused(files(**texts("optim = dict(min_lr=1e-5)"))))
        and "optim is set twice" in said
    )
    assert load_config(files(**texts("optim = dict(optim, min_lr=1e-5)"))).optim.lr == 1e-3


def test_a_call_with_a_task_twice_is_refused_by_python(files):
    assert "keyword argument repeated: a" in refused(
        files(run=START + "tasks = dict(a=dict(type='x'), a=dict(type='y'))\n")
    )


DATA = {"type": "x", "data": {"schema": "s"}}
REST = {"backbone": {"name": "x"}, "train": {"steps": 1}, "output": "x"}


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_data_with_a_task_twice_is_refused(tmp_path, suffix):
    path, one = tmp_path / f"run.{suffix}", json.dumps(DATA)
    path.write_text(json.dumps(REST)[:-1] + f', "tasks": {{"a": {one}, "b": {one}}}}}')
    assert list(load_config(path).tasks) == ["a", "b"]
    path.write_text(path.read_text().replace('"b"', '"a"'))
    assert "the key 'a' is there twice" in refused(path)


def test_yaml_in_blocks_with_a_task_twice_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("tasks:\n  a:\n    type: x\n  b:\n    type: x\n  a:\n    type: y\n")
    assert "the key 'a' is there twice" in refused(tmp_path / "run.yaml")
