"""Config files become strict dataclasses: all mistakes are told at once, and nothing that is only data can
run code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.load import digest, from_plain, load_config, to_plain
from pipeline.config.overrides import override, parse_value
from pipeline.config.schema import MergingConfig, OptimConfig
from pipeline.errors import ConfigError

BASE = "backbone = dict(name='deit_tiny_patch16_224')\noptim = dict(lr=1e-3, warmup_steps=5)\n"
RUN = """
_base_ = ['base.py']
_size = 64
output = 'runs/{{ fileBasenameNoExtension }}'
tasks = dict(a=dict(type='classification', data=dict(schema='s', train='x-{a,b}.tar', img_size=_size)))
train = dict(steps=3)
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    (tmp_path / "base.py").write_text(BASE)
    path = tmp_path / "run.py"
    path.write_text(RUN)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_base_child_and_override_merge_in_this_order(run_file):
    config = load_config(run_file, ["optim.lr=0.5", "tasks.a.data.augment.crop_scale=(1, 1)"])
    assert (config.optim.lr, config.optim.warmup_steps, config.output) == (0.5, 5, "runs/run")
    assert config.tasks["a"].data.augment.crop_scale == (1.0, 1.0)
    assert config.tasks["a"].data.img_size == 64


def test_delete_drops_what_the_base_says(run_file):
    run_file.write_text(RUN + "optim = dict(_delete_=True, lr=2e-3)\n")
    assert load_config(run_file).optim.warmup_steps == 0


def test_plain_form_round_trips_through_json_and_yaml(run_file, tmp_path):
    config = load_config(
        run_file, ["merging.policy=tome", "merging.reduction=(4,1)", "merging.options.split=parity"]
    )
    text = json.dumps(to_plain(config))
    assert from_plain(json.loads(text)) == config
    for name in ("run.json", "run.yaml"):  # JSON is YAML
        (tmp_path / name).write_text(text)
        assert load_config(tmp_path / name) == config
        assert digest(load_config(tmp_path / name)) == digest(config)
    assert digest(load_config(run_file)) != digest(config)


def test_all_mistakes_are_told_at_once_with_their_paths(run_file):
    sections = ["merging.reducton=3", "train.log_every=x", "train.mode=moduler", "seed=1.5"]
    sections += ["log.pictures=99"]
    said = message(run_file, *sections, "tasks.a.data.batch_size=0", "optim.betas=[1]")
    assert "7 mistakes" in said
    assert "merging.reducton: unknown key 'reducton'; did you mean 'reduction'?" in said
    assert "train.log_every: expected an integer, got str 'x'" in said
    assert (
        "train.mode: expected one of 'modular', 'end_to_end', 'joint', 'backbone', 'heads', got str "
        "'moduler'; did you mean 'modular'?" in said
    )
    parts = ("tasksname", "train", "merging", "optim", "log", "at-the-top")
    assert all(f"docs/configuration.md#{part}" in said.splitlines()[-1] for part in parts)
    assert "seed: expected an integer, got float 1.5" in said
    assert "tasks.a.data: data.batch_size is 0" in said
    assert "optim.betas: expected (a finite number, a finite number) or None, got list [1]" in said


@pytest.mark.parametrize(
    "override, part",
    [
        ("seed=True", "seed: expected an integer, got bool True"),
        ("optim.lr=1e999", "optim.lr: expected a finite number, got float inf"),
        ("optim.lr={[]:1}", "optim.lr: expected a finite number, got str '{[]:1}'"),
        ("output=a\0b", r"output: str 'a\x00b' has a NUL character in it"),
        ("merging.options.x=a\0b", "merging.options.x: str 'a\\x00b' has a NUL character in it"),
        ("seed=" + "9" * 20, "seed: an integer of 67 bits; give one of at most 63"),
        ("optim.lr=0x" + "f" * 5000, "optim.lr: an integer of 20000 bits"),
        ("merging.options.x=0x" + "f" * 5000, "merging.options.x: an integer of 20000 bits"),
        ("output.x=1", "override output.x: output is 'runs/run', which has no parts"),
        ("tasks.a.data.train.0=x", "tasks.a.data.train is 'x-{a,b}.tar', which has no parts"),
        ("tasks.a=3", "tasks.a: expected a dict of settings"),
        ("merging.reduction=[8, 8]", "inflection in [-1, 1]"),
        ("merging.reduction=-1", "merging.reduction is -1"),
        ("backbone.drop_path=1.0", "backbone.drop_path is 1.0"),
        ("backbone.img_size=-32", "backbone.img_size is -32"),
        ("tasks.a.data.augment.pad=64", "data.augment.pad is 64; give less than data.img_size, 64"),
        (
            "tasks.a.data.augment.mean=[123.7, 116.3, 103.5]",
            "in [0, 1], of pixels in [0, 1]; divide what is of 0 to 255 by 255",
        ),
        (
            "tasks.a.data.augment.std=[58.4, 57.1, 57.4]",
            "augment.std is (58.4, 57.1, 57.4); give numbers in (0, 1]",
        ),
        ("train.max_nonfinite=-1", "train.max_nonfinite is -1"),
        ("seed=-1", "seed is -1"),
        ("optim.weight_decay=-1", "optim.weight_decay is -1"),
        ("optim.betas=(0.9, 1.0)", "optim.betas is (0.9, 1.0)"),
        ("engine.threads=0", "engine.threads is 0"),
        ("engine.threads=100000", "engine.threads is 100000; give 1 to 1024"),
        ("backbone.img_size=1099511627776", "backbone.img_size is 1099511627776; give 1 to 16384"),
        ("tasks.a.data.img_size=(64, 99999)", "data.img_size is (64, 99999); give 1 to 16384"),
        ("tasks.a.data.workers=100000", "data.workers is 100000; give at most 256"),
        ("tasks.a.data.batch_size=1000000000000", "data.batch_size is 1000000000000; give at most 65536"),
        ("tasks.a.data.views=0", "data.views is 0; give 1 or more"),
        (
            "tasks.a.data.views=1000",
            "data.batch_size times data.views is 128000 images; give at most 65536",
        ),
        ("output=''", "output is empty"),
        ("merging.reduction=1.5", "merging.reduction is 1.5"),
        ("merging.options.x={1: 2}", "merging.options.x: the key 1 is not a string"),
        ("merging.options.x={1, 2}", "merging.options.x: expected plain data"),
        ("train.steps=None", "give exactly one of train.epochs and train.steps"),
        ("optim.lr+=1", "optim.lr is 0.001, to which nothing can be appended; give optim.lr="),
        ("optim+=1", "to which nothing can be appended"),
        ("seed", "not of the form section.key=value"),
        ("=3", "not of the form section.key=value"),
    ],
)
def test_a_wrong_override_says_what_and_where(run_file, override, part):
    assert part in message(run_file, override)


@pytest.mark.parametrize(
    "overrides, part",
    [
        (
            [f"tasks.a.data.train=x-{i}.tar" for i in range(6)],
            "tasks.a.data.train is given 6 times; give it once",
        ),
        (["seed=1", "seed=1"], "seed is given 2 times"),
        (
            ["merging.policy=tome", "merging={'reduction': 4}"],
            "merging and merging.policy set the same thing",
        ),
        (
            ["tasks.a.data={}", "tasks.a.data.augment.pad=4"],
            "tasks.a.data and tasks.a.data.augment.pad set the same thing",
        ),
    ],
)
def test_a_setting_is_given_once(run_file, overrides, part):
    """A shell that expands a brace pattern gives one setting several times, and the last would win."""
    for order in (overrides, overrides[::-1]):
        assert part in message(run_file, *order)
    assert load_config(run_file, ["merging.policy=tome", "merging.reduction=4"]).merging.policy == "tome"


TEXTS = ["backbone.name", "tasks.a.type", "tasks.a.data.schema"]
TEXTS += ["backbone.weights", "tasks.a.data.augment.rand_augment", "tasks.a.data.val"]
"""Fields of text: three that are required, then three that may be None, the last a list as well."""


@pytest.mark.parametrize("key", TEXTS)
@pytest.mark.parametrize("text", ["3", "1e-4", "{'a': 1}", "yes-1", "nonesuch", "3 "])
def test_a_field_of_text_takes_the_text_as_it_is_typed(run_file, key, text):
    assert value_of(load_config(run_file, [f"{key}={text}"]), key) == text.strip()


@pytest.mark.parametrize("key", [*TEXTS, "output", "merging.policy"])
@pytest.mark.parametrize(
    "word", ["none", "None", "null", "NULL", "~", "true", "False", "yes", "No", "on", "off"]
)
def test_a_word_that_is_a_value_is_no_name_unless_it_is_quoted(run_file, key, word):
    """`output=null` would train into a folder `null`."""
    assert value_of(load_config(run_file, [f"{key}='{word}'"]), key) == word
    if key in TEXTS[3:] and word.lower() in ("none", "null"):
        assert value_of(load_config(run_file, [f"{key}={word}"]), key) is None
    elif (key, word) != ("merging.policy", "none"):  # which is the name of a policy
        said = message(run_file, f"{key}={word}")
        assert (
            said.startswith(f"override {key}={word}: give a text")
            and f"""quote it: {key}="'{word}'\"""" in said
        )
        assert ("give none" in said) == (key in TEXTS[3:])


def value_of(config, key):
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def test_an_override_reaches_every_field_of_a_resolved_run(run_file):
    """Sections that are None are made, parts of lists are named by their number."""
    data = to_plain(load_config(run_file, ["tasks.a.data.train=a.tar,b.tar"]))
    before = json.dumps(data)
    changes = [
        "tasks.a.merging.reduction=4",
        "tasks.a.data.train.1=c.tar",
        "backbone.options.depth=3",
        "tasks.a.data.augment.resize_range.0=0.6",
    ]
    config = from_plain(data, [*changes, "objective={'type': 'distill'}", "engine.deepspeed.a.b=[{'x': 1}]"])
    assert config.tasks["a"].merging.reduction == 4 and config.tasks["a"].data.train == ["a.tar", "c.tar"]
    assert config.backbone.options == {"depth": 3}
    assert config.tasks["a"].data.augment.resize_range == (0.6, 2.0)
    assert config.objective.type == "distill" and config.engine.deepspeed == {"a": {"b": [{"x": 1}]}}
    assert json.dumps(data) == before, "what was given stays as it is"
    for part in ("2", "-1", "x", "²"):
        with pytest.raises(ConfigError, match="no position in a list of 2; give 0 to 1"):
            from_plain(data, [f"tasks.a.data.train.{part}=c.tar"])


def test_a_dict_merges_into_a_section_or_replaces_it(run_file):
    assert load_config(run_file, ["optim={'lr': 0.5}"]).optim.warmup_steps == 5
    assert load_config(run_file, ["optim={'lr': 0.5, '_delete_': True}"]).optim.warmup_steps == 0
    assert load_config(run_file, ["optim={'_delete_': True}"]).optim == OptimConfig()


@pytest.mark.parametrize(
    "override, where",
    [("tasks={}", "tasks"), ("optim={}", "optim"), ("tasks={'a': {'data': {}}}", "tasks.a.data")],
)
def test_an_empty_dict_that_would_change_nothing_is_refused(run_file, override, where):
    assert f"override {where}: an empty dict merges into what is there, and so changes nothing" in message(
        run_file, override
    )
    assert load_config(run_file, ["backbone.options={}", "mixing={}", "tasks.a.head={}"]) == load_config(
        run_file
    )


def test_the_unmerged_control_of_a_run_is_one_override(run_file):
    run_file.write_text(
        RUN.replace("steps=3", "steps=3, reduction_range=(1, 4)")
        + "merging = dict(policy='dtem', reduction=8, embedding='per_task', options=dict(tau1=0.2))\n"
        + "tasks['a']['merging'] = dict(reduction=4)\n"
    )
    config = load_config(run_file, ["merging.policy=none"])
    assert config.merging == replace(MergingConfig(), policy="none", embedding="per_task")
    assert load_config(run_file, ["merging.policy='none'"]) == config
    assert config.tasks["a"].merging is None and config.train.reduction_range is None
    kept = load_config(
        run_file, ["merging.policy=none", "merging.reduction=2", "tasks.a.merging.reduction=1"]
    )
    assert kept.merging.reduction == 2 and kept.tasks["a"].merging.reduction == 1, (
        "what is typed is refused later, not dropped"
    )
    assert load_config(run_file, ["merging.policy=tome"]).merging.reduction == 8


def test_the_length_that_is_given_wins_over_that_of_the_file(run_file):
    assert load_config(run_file, ["train.epochs=0.5"]).train.steps is None
    run_file.write_text(RUN.replace("steps=3", "epochs=3"))
    assert load_config(run_file).train.epochs == 3
    short = load_config(run_file, ["train.steps=7"]).train
    assert (short.steps, short.epochs) == (7, None)
    assert load_config(run_file, ["train.steps=null"]).train.epochs == 3
    assert "give exactly one" in message(run_file, "train.steps=7", "train.epochs=1")


def test_a_list_is_made_and_appended_to(run_file):
    key = "tasks.a.data.train"
    assert load_config(run_file, [f"{key}+=y"]).tasks["a"].data.train == ["x-{a,b}.tar", "y"]
    assert load_config(run_file, ["tasks.a.data.val+=y"]).tasks["a"].data.val == ["y"]
    run_file.write_text(RUN.replace("'x-{a,b}.tar'", "['x', 'y']"))
    assert load_config(run_file, [f"{key}+=z,w"]).tasks["a"].data.train == ["x", "y", "z", "w"]
    assert load_config(run_file, [f"{key}+={{p,q}}"]).tasks["a"].data.train == ["x", "y", "{p,q}"]
    assert "is given 2 times" in message(run_file, f"{key}+=z", f"{key}=w")
    heads = {"heads": [{"names": ["a"]}, {}]}
    assert override(heads, ["heads.0.names+=b"]) == {"heads": [{"names": ["a", "b"]}, {}]}
    assert override(heads, ["heads.1.names+=b"]) == {"heads": [{"names": ["a"]}, {"names": ["b"]}]}
    with pytest.raises(ConfigError, match=r"heads.2.names: '2' is no position in a list of 2"):
        override(heads, ["heads.2.names+=b"])


def test_a_missing_section_is_named(tmp_path):
    (tmp_path / "empty.json").write_text("{}")
    said = message(tmp_path / "empty.json")
    for name in ("backbone", "tasks", "train", "output"):
        assert f"{name}: required, but not given" in said


@pytest.mark.parametrize("where", ["run.py", "base.py"])
@pytest.mark.parametrize(
    "line, error", [("1 / 0", "ZeroDivisionError"), ("import no_such_module", "ModuleNotFoundError")]
)
def test_a_config_that_raises_is_told_with_its_line(run_file, where, line, error):
    path = run_file.parent / where
    path.write_text("# a comment\n" + line + "\n" + ("_base_ = ['base.py']\n" if where == "run.py" else ""))
    said = message(run_file)
    assert f"{where}, line 2: {error}" in said


def test_a_syntax_error_is_told_with_its_line(run_file):
    run_file.write_text("a = 1\nfor\n")
    assert "SyntaxError: invalid syntax (run.py, line 2)" in message(run_file)


@pytest.mark.parametrize(
    "name, text, part",
    [
        ("a.json", "{", "not JSON"),
        ("a.json", "[]", "top level must be a mapping"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", "\x00", "not JSON"),
        ("a.yaml", "a: [", "not plain YAML"),
        ("a.yaml", "a: &x [1]\nb: *x\n", "aliases"),
        ("a.yaml", "a: " + "[" * 50_000, "not plain YAML"),
        ("a.yaml", "!!python/object/apply:os.system ['touch CANARY']", "not plain YAML"),
        ("a.yaml", "a: !!python/name:os.system ", "not plain YAML"),
        ("a.yaml", "a: !!bool abc", "not plain YAML"),
        ("a.yaml", "a: !!timestamp abc", "not plain YAML"),
        ("a.yaml", "a: !!int abc", "not plain YAML"),
        ("a.toml", "", "ends in '.toml'"),
        ("a.json", " " * (1 << 20) + "{}", "bytes"),
        ("a.yaml", "_base_: http://example.com/x.yaml", "unknown key '_base_'"),
    ],
)
def test_a_hostile_data_file_is_an_error_and_nothing_more(tmp_path, monkeypatch, name, text, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    assert part in message(tmp_path / name)
    assert not (tmp_path / "CANARY").exists()


def test_a_byte_order_mark_is_read_over_or_named(run_file, tmp_path):
    text = json.dumps(to_plain(load_config(run_file)))
    for name in ("run.json", "run.yaml"):
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        assert load_config(tmp_path / name) == load_config(run_file)
    (tmp_path / "base.py").write_text("\ufeff" + BASE, encoding="utf-8")
    assert "base.py begins with a byte order mark" in message(run_file)


def test_overrides_and_environment_cannot_run_code(run_file, monkeypatch):
    monkeypatch.setenv("CANARY", "__import__('pathlib').Path('CANARY').touch()")
    monkeypatch.chdir(run_file.parent)
    config = load_config(
        run_file, ["merging.options.x=__import__('pathlib').Path('CANARY').touch()", "output={{$CANARY:x}}"]
    )
    assert config.merging.options["x"] == "__import__('pathlib').Path('CANARY').touch()"
    assert config.output == "{{$CANARY:x}}"
    assert not Path("CANARY").exists()


def test_a_folder_is_told_from_a_missing_file(tmp_path):
    assert f"config {tmp_path} is a folder; give a file" in message(tmp_path)


def test_a_missing_file_says_where_configs_are(tmp_path):
    assert "does not exist; the ones that come with the project are in configs/" in message(
        tmp_path / "nope.py"
    )


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4),
        ("16", 16),
        ("true", True),
        ("None", None),
        ("null", None),
        ("(8, -1.0)", (8, -1.0)),
        ("[1,2]", [1, 2]),
        ("1,2", (1, 2)),
        ("a,b", ["a", "b"]),
        ("[a,[b,1]]", ["a", ["b", 1]]),
        ("'1'", "1"),
        ("d/x-{0..3}.tar", "d/x-{0..3}.tar"),
        ("d/x-{a,b}.tar,e.tar", ["d/x-{a,b}.tar", "e.tar"]),
        ("https://h/x?a=1", "https://h/x?a=1"),
        ("", ""),
    ],
)
def test_override_values(text, value):
    assert parse_value(text) == value


@settings(deadline=None)  # a busy machine is no mistake
@given(st.text(max_size=40))
def test_any_override_text_is_a_value(text):
    parse_value(text)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=20,
    )
)
def test_any_data_is_a_run_or_a_config_error(data):
    for candidate in (
        data,
        {"backbone": data, "tasks": {"a": data}, "train": data, "output": data, "merging": {"options": data}},
    ):
        with pytest.raises(ConfigError):
            from_plain(candidate)


def test_what_is_no_setting_leads_to_where_it_is_to_be_had(run_file):
    said = message(run_file, "merging.schedule=solved", "tasks.a.merging.schedule=solved")
    assert "tasks.a.merging.schedule: no setting, as what is solved depends on what was trained" in said
    assert "\n  merging.schedule: no setting" in said and "`dtem sweep --schedule solved` prints" in said
