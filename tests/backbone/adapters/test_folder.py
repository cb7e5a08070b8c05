"""The folder of an adapter: what is written is read, and what is spoiled is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load, save_file
from tiny import tiny_vit

from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.folder import CARD, CONFIG, MOST_BYTES, TENSORS, write_folder
from pipeline.backbone.adapters.public import load_adapter, save_adapter
from pipeline.errors import CheckpointError, ConfigError
from pipeline.merging.schedule import resolve_schedule


def changed(folder, **fields):
    """Changes fields of the configuration; None leaves one out."""
    path = folder / CONFIG
    plain = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in plain.items() if value is not None}))


def test_an_adapter_is_read_as_it_was_saved(taught, folder):
    read = load_adapter(folder)
    assert {path.name for path in folder.iterdir()} == {TENSORS, CONFIG, CARD}
    assert all(
        torch.equal(value, dict(taught.named_parameters())[key]) for key, value in read.tensors.items()
    )
    assert load_adapter(folder / TENSORS).config == read.config and load_adapter(read) is read
    (folder / CARD).unlink()
    assert load_adapter(str(folder)).config == read.config


def test_what_is_not_known_is_left_out(folder):
    plain = json.loads((folder / CONFIG).read_text())
    assert plain.keys() == {"format", "base", "merging", "pixels", "license", "made_with", "tensors_sha256"}
    assert "name" not in plain["base"] and "rotary" not in plain["merging"]
    card = (folder / CARD).read_text()
    assert "base_model" not in card and "Recipe" not in card and "None" not in card


def test_a_recipe_is_checked(taught, tmp_path):
    recipe = {"objective": "merge_cost", "steps": 3}
    read = load_adapter(save_adapter(taught, tmp_path, recipe=recipe))
    assert read.config.recipe is not None and read.config.recipe.steps == 3
    with pytest.raises(ConfigError, match="stepps"):
        save_adapter(taught, tmp_path / "x", recipe={"stepps": 3})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("writer", ["write_bytes", "write_text"])
def test_a_folder_that_was_cut_off_is_the_old_adapter_or_none(writer, folder, monkeypatch):
    """The old configuration does not stand beside the new tensors, and a full disk takes nothing away."""
    old = load_adapter(folder)
    new = Adapter(old.config, {key: value + 1 for key, value in old.tensors.items()})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"pipeline.backbone.adapters.folder.{writer}", full)
    for adapter in (old, new):
        with pytest.raises(OSError):
            write_folder(adapter, folder)
        if writer == "write_bytes" or adapter is old:
            assert torch.equal(
                load_adapter(folder).tensors["blocks.0.metric.bias"], old.tensors["blocks.0.metric.bias"]
            )
        else:
            with pytest.raises(CheckpointError, match="it is not the file that"):
                load_adapter(folder)
    monkeypatch.undo()
    write_folder(new, folder)
    assert load_adapter(folder).tensors.keys() == new.tensors.keys()


@pytest.mark.parametrize("name", [TENSORS, CONFIG, CARD])
def test_nothing_is_written_through_a_link(taught, tmp_path, name):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    save_adapter(taught, tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "precious" and load_adapter(tmp_path / "out")


@pytest.mark.parametrize("name", ["checkpoints", "manifest.json"])
def test_the_folder_of_a_run_is_refused(taught, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="folder of a run"):
        save_adapter(taught, tmp_path)


def test_a_place_that_is_no_adapter_says_the_way_out(folder, tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder .*hf-hub:USER/NAME"):
        load_adapter(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"has no file {CONFIG}; `dtem export RUN --adapter`"):
        load_adapter(tmp_path / "empty")
    (folder / TENSORS).unlink()
    with pytest.raises(CheckpointError, match=f"has no file {TENSORS}"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": 2}, "format is 2 and this program reads 1; update dtem"),
        ({"base": None}, "base: required"),
        ({"surprise": 1}, "surprise"),
        ({"merging": {"policy": "tome"}}, "learns no embedding"),
        ({"merging": {"policy": "unheard"}}, "unheard"),
        ({"merging": {"policy": "dtem", "options": {"tau1": "x"}}}, "tau1"),
        ({"merging": {"policy": "dtem", "reduction": 1.5}}, "reduction"),
        ({"curves": [{"task": "a"}]}, "curves.0.metric: required"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(folder, fields, said):
    changed(folder, **fields)
    with pytest.raises(ConfigError, match=said) as told:
        load_adapter(folder)
    assert CONFIG in str(told.value)


@pytest.mark.parametrize(
    "value", [{"depth": 0}, {"depth": 10**6}, {"width": -1}, {"digest": "x"}, {"digest": "A" * 64}]
)
def test_a_base_that_cannot_be_is_refused(folder, value):
    changed(folder, base=json.loads((folder / CONFIG).read_text())["base"] | value)
    with pytest.raises(ConfigError, match=f"{next(iter(value))} is"):
        load_adapter(folder)


@pytest.mark.parametrize("change", ["cut", "of another depth", "other names", "a pickle", "empty"])
def test_tensors_that_are_no_adapter_are_refused(folder, change):
    path = folder / TENSORS
    tensors = load(path.read_bytes())
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif change == "of another depth":
        save_file({key: value for key, value in tensors.items() if not key.startswith("blocks.2.")}, path)
    elif change == "other names":
        save_file({key.replace("metric", "lora"): value for key, value in tensors.items()}, path)
    elif change == "a pickle":
        torch.save(tensors, path)
    else:
        path.write_bytes(b"")
    for note in (json.loads((folder / CONFIG).read_text())["tensors_sha256"], None):
        changed(folder, tensors_sha256=note)
        with pytest.raises(CheckpointError, match="adapter"):
            load_adapter(folder)


def test_a_file_of_another_adapter_is_refused(folder, tmp_path):
    """It has the same names and shapes, as where a copy was cut off between the two files."""
    other = save_adapter(tiny_vit("dtem", seed=8), tmp_path / "other")
    shutil.copy(other / TENSORS, folder / TENSORS)
    with pytest.raises(CheckpointError, match=f"is not the file that {CONFIG} was written with"):
        load_adapter(folder)
    changed(folder, tensors_sha256=None)
    assert load_adapter(folder)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([6, 1], [6, 1, 0]),
        ([8, 4, 0], [8, 4, 0]),
        ((8, -0.5), (8, -0.5)),
        ((1, 2, 3), [1, 2, 3]),
        (0.9, 0.9),
        (13, 13),
    ],
)
def test_a_reduction_is_read_as_it_was_meant(taught, tmp_path, given, read):
    """JSON has one kind of list: one for two blocks is not (r, inflection)."""
    found = load_adapter(save_adapter(taught, tmp_path, reduction=given)).config.merging.reduction
    assert found == read and type(found) is type(read)
    assert resolve_schedule(given, 3, 65, 1) == resolve_schedule(found, 3, 65, 1)


@pytest.mark.parametrize(
    "fields", [{"reduction": "x"}, {"reduction": (4, "x")}, {"license": 3}, {"reduction": (float("nan"), 0)}]
)
def test_what_could_not_be_read_again_is_not_written(taught, tmp_path, fields):
    with pytest.raises(ConfigError):
        save_adapter(taught, tmp_path / "x", **fields)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", [TENSORS, CONFIG])
def test_a_huge_file_is_not_read(folder, name):
    with open(folder / name, "ab") as file:
        file.truncate(MOST_BYTES[name] + 1)
    with pytest.raises(CheckpointError, match="bytes, and that of an adapter"):
        load_adapter(folder)


def test_a_link_may_be_read_as_the_hubs_cache_has_them(folder, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for name in (TENSORS, CONFIG):
        shutil.move(folder / name, tmp_path / f"blob-{name}")
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / f"blob-{name}")
    assert load_adapter(tmp_path / "snapshot").config.base.depth == 3
