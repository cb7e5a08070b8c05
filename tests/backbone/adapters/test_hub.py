"""Adapters on the hub: a server on this machine that huggingface_hub takes for the real one."""

import huggingface_hub.constants as constants
import pytest
import torch
from tiny import tiny_vit

from pipeline.backbone.adapters.folder import CARD, CONFIG, TENSORS
from pipeline.backbone.adapters.hub import repository_of
from pipeline.backbone.adapters.public import load_adapter, push_adapter, save_adapter
from pipeline.errors import CheckpointError, ConfigError

NAME = "user/deit-small-dtem"


def same(one, other):
    return one.config == other.config and all(
        torch.equal(one.tensors[k], other.tensors[k]) for k in one.tensors
    )


def test_what_is_pushed_is_what_is_loaded(hub, folder):
    url = push_adapter(folder, NAME)
    assert url.startswith(f"{hub.url}/{NAME}/commit/") and set(hub.files(NAME)) == {TENSORS, CONFIG, CARD}
    assert same(load_adapter(f"hf-hub:{NAME}"), load_adapter(folder))


def test_the_card_names_the_repository_and_a_card_that_is_there_stays(hub, folder):
    push_adapter(folder, NAME)
    card = hub.files(NAME)[CARD].decode()
    assert f'adapter="hf-hub:{NAME}"' in card and card.startswith(
        "---\nlibrary_name: dtem\nlicense: apache-2.0\n"
    )
    hub.commit(NAME, {CARD: b"mine"})
    push_adapter(folder, NAME)
    assert hub.files(NAME)[CARD] == b"mine"


def test_the_card_of_an_earlier_adapter_is_replaced(hub, folder):
    """Nobody wrote it by hand, and its figures and digest are those of the old one."""
    push_adapter(folder, NAME)
    save_adapter(tiny_vit("dtem", seed=8), folder, license="mit")
    push_adapter(folder, NAME)
    assert "license: mit" in hub.files(NAME)[CARD].decode()
    assert same(load_adapter(f"hf-hub:{NAME}"), load_adapter(folder))


def test_a_folder_that_was_renamed_has_no_card_of_its_own(hub, folder):
    folder.rename(folder.with_name("moved"))
    push_adapter(folder.with_name("moved"), NAME)
    assert f'adapter="hf-hub:{NAME}"' in hub.files(NAME)[CARD].decode()


def test_a_card_that_was_edited_is_pushed_as_it_is(hub, folder):
    (folder / CARD).write_text("edited")
    push_adapter(folder, NAME)
    assert hub.files(NAME)[CARD] == b"edited"


def test_nothing_is_pushed_of_a_folder_that_is_no_adapter(hub, folder):
    (folder / TENSORS).write_bytes(b"")
    with pytest.raises(CheckpointError):
        push_adapter(folder, NAME)
    assert hub.asked == []


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, folder):
    old = hub.add_folder(NAME, folder)
    hub.commit(NAME, {CONFIG: b"{}"})
    hub.refs[NAME]["v1"] = old
    for revision in ("v1", old):
        assert same(load_adapter(f"hf-hub:{NAME}@{revision}"), load_adapter(folder))
    with pytest.raises(ConfigError, match="base: required"):
        load_adapter(f"hf-hub:{NAME}")
    with pytest.raises(CheckpointError, match="no such revision"):
        load_adapter(f"hf-hub:{NAME}@v2")


def test_both_files_are_of_one_commit(hub, folder):
    """A commit that comes between the two files is not mixed with the one before."""
    hub.add_folder(NAME, folder)
    hub.after[CONFIG] = lambda: hub.commit(NAME, {TENSORS: b"of another adapter"})
    assert same(load_adapter(f"hf-hub:{NAME}"), load_adapter(folder))
    assert not hub.after and hub.files(NAME)[TENSORS] == b"of another adapter"


def test_without_a_network_the_cache_serves(hub, folder, monkeypatch):
    hub.add_folder(NAME, folder)
    load_adapter(f"hf-hub:{NAME}")
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(load_adapter(f"hf-hub:{NAME}"), load_adapter(folder)) and len(hub.asked) == asked
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set; run `hf download user/other`"):
        load_adapter("hf-hub:user/other")


def test_a_hub_that_does_not_answer_is_said(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/x/{filename}")
    monkeypatch.setattr("huggingface_hub.file_download._DEFAULT_RETRY_ON_EXCEPTIONS", ())
    with pytest.raises(CheckpointError, match="the hub does not answer; run `hf download user/name`"):
        load_adapter("hf-hub:user/name")


def test_a_push_without_a_network_is_said(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="the hub cannot be reached or refuses"):
        push_adapter(folder, NAME, token="hf_x")


def test_a_card_that_the_hub_does_not_take_is_said(hub, folder, monkeypatch):
    def refused(*_, **__):
        raise ValueError('Invalid metadata in README.md: "license" must be one of ...')

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", refused)
    with pytest.raises(CheckpointError, match='refuses: Invalid metadata in README.md: "license"'):
        push_adapter(folder, NAME)


def test_a_repository_that_is_no_adapter_is_refused(hub, folder):
    with pytest.raises(CheckpointError, match="no such repository for you"):
        load_adapter(f"hf-hub:{NAME}")
    hub.commit(NAME, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match="is no merge adapter"):
        load_adapter(f"hf-hub:{NAME}")


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_a_file_that_is_too_large_is_not_fetched(hub, folder, file):
    hub.add_folder(NAME, folder)
    hub.sizes[file] = 1 << 40
    with pytest.raises(CheckpointError, match=f"{file} has {1 << 40} bytes"):
        load_adapter(f"hf-hub:{NAME}")
    assert not [path for path in hub.asked if path.startswith("GET") and file in path]


@pytest.mark.parametrize(
    "name", ["", "name", "a/b/c", "user/../x", "user/na me", "user/name@", "user/x@a b", "/x"]
)
def test_a_name_that_is_none_of_the_hubs_is_refused(hub, name):
    with pytest.raises(ConfigError, match="no name of the hub"):
        load_adapter(f"hf-hub:{name}")
    assert not hub.asked


def test_names_are_timms():
    assert repository_of("hf-hub:user/name@rev") == ("user/name", "rev")
    assert repository_of("user/name") == ("user/name", None)
